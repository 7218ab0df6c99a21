"""Secrets by their names and surroundings: lines of code, shells and mails, and lines that only look alike."""

from __future__ import annotations

import pytest

from holdfast.policy.scan import scan

SECRET = (
    'password: "Summer2024!"',
    '"client_secret": "8Q~kJ2hd83jd0-shd7.asdkl2"',
    "DB_PASS=s3cr3tP@ss",
    "export MYSQL_PWD=Gh7f3kk2",
    "curl -u admin:hunter2x https://ci.example/job",
    "mysql -u root -pS3cretX1 db",
    "jdbc:mysql://db/x?user=a&password=b1c2d3e4",
    "sshpass -p 'xyz123!!' ssh root@host",
    "Server=x;User Id=sa;Password=Pa55w0rd;Database=y",
    "<password>hunter22</password>",
    "MY_APP_ENCRYPTION_KEY=0123456789abcdef0123456789abcdee",
    "SECRET_KEY = 'django-insecure-#k2$h3s8(d0a!x9w7e6'",
    "api_key=abcdef1234567890",
    "apikey: 'k3j4h5k3j4h5k3'",
    "x-api-key: 7d8f9a0b1c2d3e4f",
    '"auth": "dXNlcjpwYXNzd29yZDEyMw=="',
    "token: 'b9d1f0e2c3a4'",
    "TWILIO_AUTH_TOKEN=5f4dcc3b5aa765d61d8327deb882cf99",
    "PGPASSWORD=letmein99 psql -h db",
    "secret=9f86d081884c7d659a2feaa0c55ad015",
    "redis://:p4ssw0rd@cache:6379/0",
    "Authorization: Basic dXNlcjpwYXNzd29yZDEyMw==",
    'set password for user bob to "Tr3e-house-9"',
    "const dbPassword = 'qwerty!234';",
    'passwd="zaq12wsx"',
    "ENV ADMIN_PASSWORD hunter2hunter2",
    "--password=Xk29dkq1",
    "--token 8sd7f68s7df68s7df6",
    "my password is Tiger$cloud77",
    "spring.datasource.password=u8Jk!2ml",
    'heroku_key = "12345678-abcd-4321-abcd-1234567890ab"',
    'pass: "K1ngfish3r"',
    "JWT_SECRET=supersecretkey123",
    '"password" : "abc123xyz"',
)
HARMLESS = (
    'password = request.form["password"]',
    'token = os.environ.get("TOKEN")',
    '"password": {"type": "string"}',
    'password_field = "password"',
    "secretName: my-app-secret",
    "secretKeyRef:",
    'tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")',
    "if password != confirm_password:",
    '<input type="password" name="password" placeholder="Password">',
    "csrf_token: {{ csrf_token }}",
    "PASSWORD_RESET_TIMEOUT = 259200",
    "auth_token_url: https://auth.example.com/oauth/token",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
    'integrity="sha384-oqVuAfXRKap7fdgcCY5uykM6+R9GqQ8K/uxy9rx7HNQlGYl1kPzQho1wx4JwY8wC"',
    'passwordHash: "$2b$12$KIXQ1J8Jc3JQ9d8e7f6g5h4i3j2k1l0m"',
    "Password must be at least 8 characters and contain a number.",
    "Forgot your password? Click here to reset it.",
    "550e8400-e29b-41d4-a716-446655440000",
    "apiKey: process.env.API_KEY,",
    "token_type: bearer",
    "secret: !vault |",
    'password: "********"',
    '"password": "string"',
    'private_key_path = "/etc/ssl/private/key.pem"',
    'public_key = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA"',
    "def get_secret(name: str) -> str:",
    "SELECT password FROM users WHERE id = 1",
    "tokens = text.split()",
    "next_token = self.tokens[self.pos]",
    "The token was accepted by the server.",
    "secrets.token_urlsafe(32)",
    "max_tokens=1024",
    "this.password = password;",
    "String password = getPassword();",
    "password: ${{ secrets.DB_PASSWORD }}",
    "api_key: <YOUR_API_KEY>",
    "API_KEY=your_api_key_here",
    "const token = await getToken();",
    "aws_access_key_id = YOUR_ACCESS_KEY",
    "password=changeme",
    'test("login with wrong password", () => {',
    "class PasswordResetView(View):",
    "username: alice, role: secretary",
    "bearer of the ring",
    "image: registry/app@sha256:4bcdffd70da292293d059d2435c7056711fab2655f8b74f48ad0abe042b63687",
    "session token expired, please login again",
    "from secrets import choice",
    "assert token == expected_token",
    "password_min_length: 12",
    '"csrfToken": null',
    'key: "value"',
    "background: url(data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4)",
    "token.kind = Kind.STRING",
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7 user@host",
    "secret_santa = pick(people)",
    'print(f"password is {password}")',
    "password -> hashed_password",
    "PIN number required",
    "accessKeyRotation: enabled",
    '"passwordPolicy": "strict-v2"',
)
# Put together here, so that no scanner takes this file for a leak.
ISSUED = (
    ("AKIA", "JQ5CMEZPUYGFLQ7A"),
    ("ghp_", "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"),
    ("github_pat_", "11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789"),
    ("glpat-", "AbCdEfGhIjKlMnOpQrSt"),
    ("xoxb-", "123456789012-123456789012-abcdefGHIJKLmnopQRST"),
    ("sk_live_", "51Habcdefghijklmnopqr"),
    ("sk-ant-", "api03-abcD1234efgh5678ijklMNOP"),
    ("AIza", "SyD4k3j2h1g0f9e8d7c6b5a4Z3Y2X1W0VuT"),
    ("npm_", "abcdefghijklmnopqrstuvwxyz0123456789"),
    ("SG.", "ngeVfQFYQlKU0ufo8x5d1A.TwL2iGABf9DHoTf-09kqeF8tAmbihYzrnopKc"),
    ("shpat_", "0123456789abcdef0123456789abcdef"),
    ("hvs.", "CAESIJlU02LQZq0h1k2j3h4g5f6d7s8a9"),
    ("eyJ", "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
    ("https://hooks.slack.com/services/", "T01ABCDEF/B02GHIJKL/a8sd7f6a8sd7f6asd8f7"),
)


def secrets(line: str) -> list[str]:
    return [line[one.start : one.end] for one in scan(line, ("SECRET",)).findings]


@pytest.mark.parametrize("line", SECRET)
def test_secret(line: str) -> None:
    assert secrets(line)


@pytest.mark.parametrize("line", HARMLESS)
def test_harmless(line: str) -> None:
    assert secrets(line) == []


@pytest.mark.parametrize(("head", "tail"), ISSUED)
def test_tokens_of_known_issuers(head: str, tail: str) -> None:
    assert secrets(f"see {head}{tail} there") == [f"{head}{tail}".removeprefix("https://")]
    assert secrets(f"see {head}{'x' * len(tail)} there") == []


@pytest.mark.parametrize("kind", ["RSA ", "EC ", "OPENSSH ", ""])
def test_private_keys(kind: str) -> None:
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n" * 4
    whole = f"-----BEGIN {kind}PRIVATE KEY-----\n{body}-----END {kind}PRIVATE KEY-----"
    assert secrets(f"a\n{whole}\nb") == [whole]
    cut = whole[:120]
    assert secrets(f"a\n{cut}") == [cut]
    assert secrets(whole.replace("PRIVATE", "PUBLIC")) == []
