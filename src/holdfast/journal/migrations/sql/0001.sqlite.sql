CREATE TABLE blobs (
  digest TEXT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (digest)
);

CREATE TABLE events (
  tenant TEXT NOT NULL,
  idx BIGINT NOT NULL,
  stream TEXT NOT NULL,
  seq BIGINT NOT NULL,
  kind TEXT NOT NULL,
  at BIGINT NOT NULL,
  clock_error BIGINT NOT NULL,
  node TEXT NOT NULL,
  epoch BIGINT NOT NULL,
  witness TEXT NOT NULL,
  principal TEXT NOT NULL,
  auth TEXT NOT NULL,
  prev TEXT NOT NULL,
  leaf TEXT NOT NULL,
  before BIGINT NOT NULL,
  body BLOB NOT NULL,
  CONSTRAINT uq_events_log UNIQUE (tenant, idx)
);

CREATE TABLE inbox (
  id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL,
  stream TEXT NOT NULL,
  kind TEXT NOT NULL,
  data TEXT NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BLOB NOT NULL,
  principal TEXT NOT NULL,
  auth TEXT NOT NULL,
  at BIGINT NOT NULL
);

CREATE INDEX ix_inbox_stream ON inbox (stream, id);

CREATE TABLE kills (
  id TEXT NOT NULL,
  scope TEXT NOT NULL,
  name TEXT NOT NULL,
  tenant TEXT NOT NULL,
  reason TEXT NOT NULL,
  issued_by TEXT NOT NULL,
  at BIGINT NOT NULL,
  compensate BOOLEAN NOT NULL,
  PRIMARY KEY (id)
)
 WITHOUT ROWID;

CREATE TABLE ledger (
  "key" TEXT NOT NULL,
  kind TEXT NOT NULL,
  reserved BIGINT NOT NULL,
  settled BIGINT NOT NULL,
  ceiling BIGINT NOT NULL,
  tat BIGINT NOT NULL,
  holders TEXT NOT NULL,
  PRIMARY KEY ("key")
)
 WITHOUT ROWID;

CREATE TABLE memory (
  tenant TEXT NOT NULL,
  agent TEXT NOT NULL,
  "key" TEXT NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BLOB NOT NULL,
  PRIMARY KEY (tenant, agent, "key")
)
 WITHOUT ROWID;

CREATE TABLE meta (
  "key" TEXT NOT NULL,
  value BIGINT NOT NULL,
  PRIMARY KEY ("key")
)
 WITHOUT ROWID;

CREATE TABLE nodes (
  node TEXT NOT NULL,
  host TEXT NOT NULL,
  boot TEXT NOT NULL,
  pid BIGINT NOT NULL,
  pid_start BIGINT NOT NULL,
  lease_until BIGINT NOT NULL,
  PRIMARY KEY (node)
)
 WITHOUT ROWID;

CREATE TABLE pasts (
  tenant TEXT NOT NULL,
  stream TEXT NOT NULL,
  step TEXT NOT NULL,
  attempt BIGINT NOT NULL,
  agent TEXT NOT NULL,
  gate TEXT NOT NULL,
  name TEXT NOT NULL,
  at BIGINT NOT NULL,
  state TEXT NOT NULL,
  ended_at BIGINT NOT NULL,
  figures TEXT NOT NULL,
  PRIMARY KEY (tenant, stream, step, attempt)
)
 WITHOUT ROWID;

CREATE INDEX ix_pasts_at ON pasts (tenant, at);

CREATE TABLE payloads (
  tenant TEXT NOT NULL,
  idx BIGINT NOT NULL,
  role TEXT NOT NULL,
  commitment TEXT NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BLOB NOT NULL,
  CONSTRAINT uq_payloads UNIQUE (tenant, idx, role)
);

CREATE TABLE secrets (
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  version BIGINT NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BLOB NOT NULL,
  binding TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (tenant, name)
)
 WITHOUT ROWID;

CREATE TABLE streams (
  stream TEXT NOT NULL,
  tenant TEXT NOT NULL,
  region TEXT NOT NULL,
  kind TEXT NOT NULL,
  agent TEXT NOT NULL,
  workflow TEXT NOT NULL,
  root TEXT NOT NULL,
  parent TEXT NOT NULL,
  depth BIGINT NOT NULL,
  principal TEXT NOT NULL,
  auth TEXT NOT NULL,
  deployment TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  status TEXT NOT NULL,
  epoch BIGINT NOT NULL,
  owner TEXT NOT NULL,
  seq BIGINT NOT NULL,
  head TEXT NOT NULL,
  tail BIGINT NOT NULL,
  ready_at BIGINT,
  replay_from BIGINT NOT NULL,
  asking BIGINT NOT NULL,
  PRIMARY KEY (stream)
)
 WITHOUT ROWID;

CREATE INDEX ix_streams_asking ON streams (asking, created_at) WHERE asking = 1;

CREATE INDEX ix_streams_created ON streams (created_at);

CREATE INDEX ix_streams_owner ON streams (owner) WHERE owner <> '';

CREATE INDEX ix_streams_ready ON streams (ready_at) WHERE owner = '' AND ready_at IS NOT NULL;

CREATE INDEX ix_streams_status ON streams (status, created_at);

CREATE INDEX ix_streams_waiting ON streams (tenant, ready_at) WHERE owner = '' AND ready_at IS NOT NULL;

CREATE TABLE tenant_keys (
  tenant TEXT NOT NULL,
  id TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  wrapped BLOB,
  erased_at BIGINT,
  PRIMARY KEY (tenant, id)
)
 WITHOUT ROWID;

CREATE TABLE tenants (
  name TEXT NOT NULL,
  region TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  log_size BIGINT NOT NULL,
  frontier BLOB NOT NULL,
  PRIMARY KEY (name)
)
 WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES ('kill_generation', 0);
