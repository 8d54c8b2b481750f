"""server.py ADDRESS FOLDER [CERTIFICATE KEY]: Git's own server of the smart protocol (`git http-backend`) for the
repositories of a folder, over HTTP or HTTPS. Those of FOLDER/private want the user `agent` with the password `sesame`;
whoever asks for /moved/ is sent to /private/. Prints its port, and serves until it is killed."""

import base64
import http.server
import os
import ssl
import subprocess
import sys

ADDRESS, FOLDER = sys.argv[1:3]
ALLOWED = "Basic " + base64.b64encode(b"agent:sesame").decode()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.serve(b"")

    def do_POST(self):
        self.serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def serve(self, body):
        path, _, query = self.path.partition("?")
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/private/", 1))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith("/private/") and self.headers.get("Authorization") != ALLOWED:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="repositories"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": FOLDER,
            "GIT_HTTP_EXPORT_ALL": "1",
            # The repositories are of whoever runs the test.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": self.client_address[0],
        }
        run = {"input": body, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "check": False}
        backend = subprocess.run(["git", "http-backend"], **run)
        head, _, answer = backend.stdout.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n") if line]
        status = next((value.split()[0] for name, value in headers if name == "Status"), "200")
        self.send_response(int(status))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((ADDRESS, 0), Handler)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[3:5])
    # The handshake is each connection's own: one that hangs keeps nobody waiting.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
