"""The scripted server: its script, its gates, its command."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.errors import ConfigError
from holdfast.testing.model_script import Script, load
from holdfast.testing.model_server import ModelServer, Reply, Request, Rule

HEADERS = {"x-api-key": "sk-test"}


def ask(url: str, text: str = "hello", *, headers: dict[str, str] = HEADERS, **more: Any) -> httpx.Response:
    body = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{url}/v1/messages", json=body, headers=headers, timeout=60, trust_env=False)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["content"][0]["text"])


def test_the_first_rule_that_matches_answers() -> None:
    rules = [
        Rule(match="^invoice", times=2, text="once or twice"),
        Rule(match="^invoice", system="strict", text="strictly"),
        {"model": "haiku", "text": "small"},
        Rule(text="anything"),
    ]
    with ModelServer(rules) as server:
        texts = [said(ask(server.url, "invoice 7")) for _ in range(3)]
        texts.append(said(ask(server.url, "invoice 7", system="be strict")))
        texts.append(said(ask(server.url, "other", model="claude-haiku")))
        parts = [{"type": "text", "text": "invoice 8"}]
        texts.append(said(ask(server.url, system="strict", messages=[{"role": "user", "content": parts}])))
    assert texts == ["once or twice", "once or twice", "anything", "strictly", "small", "strictly"]


def test_no_rule_is_an_error_and_not_a_guess() -> None:
    with ModelServer([Rule(match="never", text="x")]) as server:
        answer = ask(server.url)
        assert answer.status_code == 400
        assert "no rule" in answer.json()["error"]["message"]
        assert answer.headers["server"] == "holdfast-scripted-model"


def test_a_function_may_be_the_script() -> None:
    def script(request: Request) -> Reply | None:
        return Reply(text=f"{request.number}: {request.last}") if request.key == "sk-test" else None

    with ModelServer(script) as server:
        assert [said(ask(server.url, text)) for text in "ab"] == ["1: a", "2: b"]


@pytest.mark.parametrize(
    ("own", "headers", "status"),
    [("", {}, 401), ("", HEADERS, 200), ("other", HEADERS, 401), ("sk-test", HEADERS, 200)],
)
def test_keys(own: str, headers: dict[str, str], status: int) -> None:
    with ModelServer([Rule(text="x")], key=own) as server:
        assert ask(server.url, headers=headers).status_code == status
        assert server.statuses == {status: 1}
        assert server.requests[0].key == headers.get("x-api-key", "")


def test_the_output_limit_holds() -> None:
    with ModelServer([Rule(text="word " * 100)]) as server:
        answer = ask(server.url, max_tokens=3).json()
    assert answer["usage"]["output_tokens"] == 3
    assert answer["stop_reason"] == "max_tokens"
    assert len(answer["content"][0]["text"]) == 12


def test_a_gate_holds_until_it_is_released() -> None:
    with ModelServer([Rule(text="x", gate="g")]) as server, ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(ask, server.url) for _ in range(3)]
        server.wait_held("g", 3)
        assert not server.statuses
        assert httpx.post(f"{server.url}/scripted/release", json={"gate": "g"}, trust_env=False).status_code == 200
        assert [said(answer.result(60)) for answer in answers] == ["x"] * 3
        assert said(ask(server.url)) == "x"


def test_waits_give_up() -> None:
    with ModelServer([]) as server:
        with pytest.raises(TimeoutError, match="0 of 1"):
            server.wait_for(1, 0)
        with pytest.raises(TimeoutError, match="0 of 1"):
            server.wait_held("g", 1, 0)
        with pytest.raises(TimeoutError, match="0 of 1"):
            server.wait_answered(1, 0)


def test_what_is_no_model_call() -> None:
    with ModelServer([Rule(text="x")]) as server:
        with httpx.Client(base_url=server.url, headers=HEADERS, trust_env=False, timeout=60) as client:
            assert client.get("/v1/messages").status_code == 404
            assert client.post("/v1/other", json={}).status_code == 404
            assert client.post("/v1/messages", content=b"{").status_code == 400
            assert client.post("/v1/messages", content=b"[]").status_code == 400
        assert server.requests == []


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"match": "("}, "rule 1 of the model script"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"fault": "explode"}, "fault 'explode' is not one of"),
        ({"operation": "paint"}, "operation 'paint' is not one of"),
        ({"times": "two"}, "times"),
    ],
)
def test_a_bad_rule_is_named(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Script([rule])


@pytest.mark.parametrize("text", ["", "3", "{", '{"rule": []}'])
def test_a_bad_script_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "script.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"script\.json"):
        load(file)
    with pytest.raises(ConfigError, match=r"missing\.json"):
        load(tmp_path / "missing.json")


def test_a_port_that_is_taken() -> None:
    with ModelServer([]) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match="choose another port"):
            ModelServer([], port=port).start()


def test_the_command_prints_its_address_and_ends_with_its_input(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    file.write_text(json.dumps({"rules": [{"match": "rent", "category": "approved"}, {"text": "hello"}]}))
    command = [sys.executable, "-m", "holdfast.testing.model_server", "--port", "0", "--script", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert said(ask(url)) == "hello"
        log = httpx.get(f"{url}/scripted/log", trust_env=False, timeout=60).json()
        assert [entry["last"] for entry in log["requests"]] == ["hello"]
        process.stdin.close()
        assert process.wait(60) == 0


def test_the_command_refuses_a_bad_script(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "holdfast.testing.model_server", "--script", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
