#!/usr/bin/env python3
"""mkimage.py ARCHIVE NAME FOLDER [--entrypoint WORD...]: makes a folder the only layer of an image.

Writes a Docker archive, which `ctr images import` reads. The same folder gives the same bytes.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import tarfile

EPOCH = "1970-01-01T00:00:00Z"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def anonymous(entry):
    """An entry without its owner and time."""
    entry.mtime = entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def layer_of(folder):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(folders + files):
                path = os.path.join(parent, name)
                tar.add(path, os.path.relpath(path, folder), recursive=False, filter=anonymous)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    parser.add_argument("name")
    parser.add_argument("folder")
    parser.add_argument("--entrypoint", nargs="*")
    arguments = parser.parse_args()

    layer = layer_of(arguments.folder)
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "created": EPOCH,
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": arguments.entrypoint},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest]},
            "history": [{"created": EPOCH, "created_by": "mkimage.py"}],
        },
        sort_keys=True,
    ).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    layer_name = digest + "/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": [arguments.name], "Layers": [layer_name]}]
    with tarfile.open(arguments.archive, "w") as tar:
        contents = [(config_name, config), (layer_name, layer), ("manifest.json", json.dumps(manifest).encode())]
        for name, content in contents:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
