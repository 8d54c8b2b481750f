"""The published Python client, unchanged, against a server: every call that this release answers."""

import json
import sys

import httpx
from ash_sdk import AshClient
from ash_sdk.streaming import (
    DoneEvent,
    ErrorEvent,
    MessageEvent,
    SessionStartEvent,
    TextDeltaEvent,
    ToolResultEvent,
    ToolUseEvent,
    TurnCompleteEvent,
)

url, key, folder = sys.argv[1:]
client = AshClient(url, token=key)


def check(what, fine):
    if not fine:
        sys.exit(f"python client: {what}")


def kinds(events):
    return [type(event) for event in events]


health = client.health()
check(f"health: {health}", health["status"] == "ok" and health["activeSessions"] == 0)

for version in (1, 2):
    agent = client.deploy_agent("snake", folder)
    check(f"deploy: {agent}", agent.name == "snake" and agent.version == version)
check("list of agents", [agent.name for agent in client.list_agents()] == ["snake"])
check("get of an agent", client.get_agent("snake").version == 2)

session = client.create_session("snake", extra_env={"CANARY": "of the client"}, permission_mode="bypassPermissions")
check(f"create: {session}", session.agent_name == "snake" and session.status == "active")
check("list of sessions", [other.id for other in client.list_sessions(agent="snake")] == [session.id])
check("get of a session", client.get_session(session.id).id == session.id)

# Whole messages only.
events = list(client.send_message_stream(session.id, "[[text: good morning]]"))
check(f"stream: {events}", isinstance(events[0], SessionStartEvent) and isinstance(events[-1], DoneEvent))
check(f"no deltas: {events}", TextDeltaEvent not in kinds(events) and ErrorEvent not in kinds(events))
complete = [event for event in events if isinstance(event, TurnCompleteEvent)]
check(f"turn_complete: {complete}", [(event.num_turns, event.result) for event in complete] == [(1, "good morning")])
messages = [event.data for event in events if isinstance(event, MessageEvent)]
check(f"message: {messages}", any(message["type"] == "assistant" for message in messages))

# As it is written, with a tool.
tool = "[[tool: Bash %s]] [[result]]" % json.dumps({"command": "echo $CANARY"})
events = list(client.send_message_stream(session.id, tool, include_partial_messages=True, model="opus", effort="low"))
uses = [event for event in events if isinstance(event, ToolUseEvent)]
check(f"tool_use: {uses}", [(use.name, use.input["command"]) for use in uses] == [("Bash", "echo $CANARY")])
results = [event for event in events if isinstance(event, ToolResultEvent)]
check(f"tool_result: {results}", [result.tool_use_id for result in results] == [uses[0].id])
text = "".join(event.delta for event in events if isinstance(event, TextDeltaEvent))
check(f"text_delta: {text}", text.strip() == "of the client")
check(f"events of the contract: {kinds(events)}", ErrorEvent not in kinds(events))

# What fails, fails as the client knows it.
events = list(client.send_message_stream(session.id, "[[error: 400]]"))
check(f"error: {events}", ErrorEvent in kinds(events) and isinstance(events[-1], DoneEvent))
try:
    client.get_session("00000000-0000-0000-0000-000000000000")
    check("an unknown session is there", False)
except httpx.HTTPStatusError as error:
    check(f"unknown: {error}", error.response.status_code == 404 and error.response.json()["error"])

ended = client.end_session(session.id)
check(f"end: {ended}", ended.id == session.id and ended.status == "ended")
client.delete_agent("snake")
check("delete", client.list_agents() == [])
print("done")
