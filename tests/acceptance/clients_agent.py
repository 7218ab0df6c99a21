"""Every client that people use, as they use it: nothing here knows of a proxy."""

import json
import subprocess
from pathlib import Path

from holdfast import agent, workflow


@agent(name="clients")
class Clients:
    @workflow
    def main(self, ctx):
        found = {}
        for name in ctx.input.which:
            try:
                found[name] = ctx.call(getattr(self, name), ctx.input.url)
            except Exception as error:  # noqa: BLE001 - the test shows what became of each
                found[name] = f"{type(error).__name__}: {error}"
        return found

    def requests(self, url):
        import requests

        return requests.post(f"{url}/requests", json={"a": 1}, timeout=60).json()["body"]

    def httpx(self, url):
        import httpx

        return httpx.post(f"{url}/httpx", json={"a": 1}, timeout=60).json()["body"]

    async def aiohttp(self, url):
        import aiohttp

        async with aiohttp.ClientSession() as session, session.post(f"{url}/aiohttp", json={"a": 1}) as answer:
            return (await answer.json())["body"]

    def urllib(self, url):
        import urllib.request

        request = urllib.request.Request(f"{url}/urllib", data=b"a=1")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["body"]

    def boto3(self, url):
        import boto3

        session = boto3.session.Session("AKIAEXAMPLE", "not-the-real-one", region_name="eu-west-1")
        s3 = session.client("s3", endpoint_url=url)
        s3.put_object(Bucket="empty", Key="ledger.txt", Body=b"a=1")
        return "put"

    def anthropic(self, url):
        import anthropic

        client = anthropic.Anthropic(api_key="holdfast-secret-llm", base_url=url, max_retries=0)
        message = client.messages.create(
            model="scripted-1", max_tokens=50, messages=[{"role": "user", "content": "hello"}]
        )
        return message.content[0].text

    def anthropic_stream(self, url):
        import anthropic

        client = anthropic.Anthropic(api_key="holdfast-secret-llm", base_url=url, max_retries=0)
        with client.messages.stream(
            model="scripted-1", max_tokens=50, messages=[{"role": "user", "content": "hello"}]
        ) as stream:
            return "".join(stream.text_stream)

    def openai(self, url):
        import openai

        client = openai.OpenAI(api_key="holdfast-secret-llm", base_url=f"{url}/v1", max_retries=0)
        answer = client.chat.completions.create(
            model="scripted-1", max_tokens=50, messages=[{"role": "user", "content": "hello"}]
        )
        return answer.choices[0].message.content

    def curl(self, url):
        return json.loads(run("curl", "-sS", "-d", "a=1", f"{url}/curl"))["body"]

    def git(self, url):
        run("git", "clone", "-q", f"{url}/books.git", "books")
        return Path("books/ledger.txt").read_text()

    def pip(self, url):
        import sys

        run(
            sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--disable-pip-version-check",
            "--index-url", f"{url}/simple", "--trusted-host", "127.0.0.1", "--target", "lib", "ledgerly",
        )  # fmt: skip
        return sorted(path.name for path in Path("lib").glob("*.py"))

    def npm(self, url):
        Path("package.json").write_text("{}")
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--registry", f"{url}/npm/", "ledgerly")
        return Path("node_modules/ledgerly/index.js").read_text()


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
