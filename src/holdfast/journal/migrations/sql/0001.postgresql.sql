CREATE TABLE blobs (
  digest TEXT COLLATE "C" NOT NULL,
  data BYTEA NOT NULL,
  PRIMARY KEY (digest)
);

CREATE TABLE events (
  tenant TEXT COLLATE "C" NOT NULL,
  idx BIGINT NOT NULL,
  stream TEXT COLLATE "C" NOT NULL,
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
  body BYTEA NOT NULL,
  CONSTRAINT uq_events_log UNIQUE (tenant, idx)
) WITH (toast_tuple_target = 8160);

CREATE TABLE inbox (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  tenant TEXT COLLATE "C" NOT NULL,
  stream TEXT COLLATE "C" NOT NULL,
  kind TEXT NOT NULL,
  data TEXT NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BYTEA NOT NULL,
  principal TEXT NOT NULL,
  auth TEXT NOT NULL,
  at BIGINT NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX ix_inbox_stream ON inbox (stream, id);

CREATE TABLE kills (
  id TEXT COLLATE "C" NOT NULL,
  scope TEXT NOT NULL,
  name TEXT NOT NULL,
  tenant TEXT COLLATE "C" NOT NULL,
  reason TEXT NOT NULL,
  issued_by TEXT NOT NULL,
  at BIGINT NOT NULL,
  compensate BOOLEAN NOT NULL,
  PRIMARY KEY (id)
);

CREATE TABLE ledger (
  key TEXT COLLATE "C" NOT NULL,
  kind TEXT NOT NULL,
  reserved BIGINT NOT NULL,
  settled BIGINT NOT NULL,
  ceiling BIGINT NOT NULL,
  tat BIGINT NOT NULL,
  holders TEXT NOT NULL,
  PRIMARY KEY (key)
) WITH (fillfactor = 70);

CREATE TABLE memory (
  tenant TEXT COLLATE "C" NOT NULL,
  agent TEXT COLLATE "C" NOT NULL,
  key TEXT COLLATE "C" NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BYTEA NOT NULL,
  PRIMARY KEY (tenant, agent, key)
);

CREATE TABLE meta (
  key TEXT COLLATE "C" NOT NULL,
  value BIGINT NOT NULL,
  PRIMARY KEY (key)
);

CREATE TABLE nodes (
  node TEXT COLLATE "C" NOT NULL,
  host TEXT NOT NULL,
  boot TEXT NOT NULL,
  pid BIGINT NOT NULL,
  pid_start BIGINT NOT NULL,
  lease_until BIGINT NOT NULL,
  PRIMARY KEY (node)
);

CREATE TABLE pasts (
  tenant TEXT COLLATE "C" NOT NULL,
  stream TEXT COLLATE "C" NOT NULL,
  step TEXT COLLATE "C" NOT NULL,
  attempt BIGINT NOT NULL,
  agent TEXT COLLATE "C" NOT NULL,
  gate TEXT COLLATE "C" NOT NULL,
  name TEXT COLLATE "C" NOT NULL,
  at BIGINT NOT NULL,
  state TEXT NOT NULL,
  ended_at BIGINT NOT NULL,
  figures TEXT NOT NULL,
  PRIMARY KEY (tenant, stream, step, attempt)
);

CREATE INDEX ix_pasts_at ON pasts (tenant, at);

CREATE TABLE payloads (
  tenant TEXT COLLATE "C" NOT NULL,
  idx BIGINT NOT NULL,
  role TEXT COLLATE "C" NOT NULL,
  commitment TEXT NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BYTEA NOT NULL,
  CONSTRAINT uq_payloads UNIQUE (tenant, idx, role)
) WITH (toast_tuple_target = 8160);

ALTER TABLE payloads ALTER ciphertext SET STORAGE EXTERNAL;

CREATE TABLE secrets (
  tenant TEXT COLLATE "C" NOT NULL,
  name TEXT COLLATE "C" NOT NULL,
  version BIGINT NOT NULL,
  key_id TEXT NOT NULL,
  ciphertext BYTEA NOT NULL,
  binding TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (tenant, name)
);

CREATE TABLE streams (
  stream TEXT COLLATE "C" NOT NULL,
  tenant TEXT COLLATE "C" NOT NULL,
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
) WITH (fillfactor = 70);

CREATE INDEX ix_streams_asking ON streams (asking, created_at) WHERE asking = 1;

CREATE INDEX ix_streams_created ON streams (created_at);

CREATE INDEX ix_streams_owner ON streams (owner) WHERE owner <> '';

CREATE INDEX ix_streams_ready ON streams (ready_at) WHERE owner = '' AND ready_at IS NOT NULL;

CREATE INDEX ix_streams_status ON streams (status, created_at);

CREATE INDEX ix_streams_waiting ON streams (tenant, ready_at) WHERE owner = '' AND ready_at IS NOT NULL;

CREATE TABLE tenant_keys (
  tenant TEXT COLLATE "C" NOT NULL,
  id TEXT COLLATE "C" NOT NULL,
  created_at BIGINT NOT NULL,
  wrapped BYTEA,
  erased_at BIGINT,
  PRIMARY KEY (tenant, id)
);

CREATE TABLE tenants (
  name TEXT COLLATE "C" NOT NULL,
  region TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  log_size BIGINT NOT NULL,
  frontier BYTEA NOT NULL,
  PRIMARY KEY (name)
) WITH (fillfactor = 20);

INSERT INTO meta (key, value) VALUES ('kill_generation', 0);

CREATE FUNCTION holdfast_commit(
  tenant_name TEXT[], tenant_size BIGINT[], tenant_key TEXT[], tenant_new_size BIGINT[], tenant_frontier BYTEA[],
  generation BIGINT,
  stream_name TEXT[], stream_epoch BIGINT[], stream_owner TEXT[], stream_seq BIGINT[], stream_new_seq BIGINT[],
  stream_head TEXT[], stream_tail BIGINT[],
  old_reserved BIGINT[], old_settled BIGINT[], old_tat BIGINT[], old_holders TEXT[],
  ledger_key TEXT[], ledger_kind TEXT[], ledger_reserved BIGINT[], ledger_settled BIGINT[], ledger_ceiling BIGINT[],
  ledger_tat BIGINT[], ledger_holders TEXT[],
  event_tenant TEXT[], event_idx BIGINT[], event_stream TEXT[], event_seq BIGINT[], event_kind TEXT[],
  event_at BIGINT[], event_clock_error BIGINT[], event_node TEXT[], event_epoch BIGINT[], event_witness TEXT[],
  event_principal TEXT[], event_auth TEXT[], event_prev TEXT[], event_leaf TEXT[], event_before BIGINT[],
  event_body BYTEA[],
  payload_tenant TEXT[], payload_idx BIGINT[], payload_role TEXT[], payload_commitment TEXT[], payload_key_id TEXT[],
  payload_ciphertext BYTEA[]
) RETURNS BIGINT LANGUAGE plpgsql AS $$
DECLARE
  met BIGINT;
BEGIN
  UPDATE tenants t SET log_size = u.new_size, frontier = u.frontier
  FROM unnest(tenant_name, tenant_size, tenant_key, tenant_new_size, tenant_frontier)
    AS u (name, size, key, new_size, frontier)
  WHERE t.name = u.name AND t.log_size = u.size
    AND EXISTS (SELECT 1 FROM tenant_keys k WHERE k.tenant = u.name AND k.id = u.key AND k.wrapped IS NOT NULL);
  GET DIAGNOSTICS met = ROW_COUNT;
  IF met <> cardinality(tenant_name) THEN RAISE SQLSTATE '40001'; END IF;
  UPDATE streams s SET seq = u.new_seq, head = u.head, tail = u.tail
  FROM unnest(stream_name, stream_epoch, stream_owner, stream_seq, stream_new_seq, stream_head, stream_tail)
    AS u (name, epoch, owner, seq, new_seq, head, tail)
  WHERE s.stream = u.name AND s.epoch = u.epoch AND s.owner = u.owner AND s.seq = u.seq;
  GET DIAGNOSTICS met = ROW_COUNT;
  IF met <> cardinality(stream_name) THEN RAISE SQLSTATE '40001'; END IF;
  IF generation >= 0 THEN
    PERFORM pg_advisory_xact_lock_shared(1752132708);
    IF (SELECT value FROM meta WHERE key = 'kill_generation') <> generation THEN RAISE SQLSTATE '40001'; END IF;
  END IF;
  IF cardinality(ledger_key) > 0 THEN
    UPDATE ledger l
    SET kind = u.kind, reserved = u.reserved, settled = u.settled, ceiling = u.ceiling, tat = u.tat, holders = u.holders
    FROM unnest(ledger_key, ledger_kind, ledger_reserved, ledger_settled, ledger_ceiling, ledger_tat, ledger_holders,
      old_reserved, old_settled, old_tat, old_holders) AS u (key, kind, reserved, settled, ceiling, tat, holders,
      before_reserved, before_settled, before_tat, before_holders)
    WHERE l.key = u.key AND l.reserved = u.before_reserved AND l.settled = u.before_settled AND l.tat = u.before_tat
      AND l.holders = u.before_holders;
    GET DIAGNOSTICS met = ROW_COUNT;
    IF met < cardinality(ledger_key) THEN
      IF met <> cardinality(array_remove(old_reserved, NULL)) THEN RAISE SQLSTATE '40001'; END IF;
      INSERT INTO ledger (key, kind, reserved, settled, ceiling, tat, holders)
      SELECT u.key, u.kind, u.reserved, u.settled, u.ceiling, u.tat, u.holders
      FROM unnest(ledger_key, ledger_kind, ledger_reserved, ledger_settled, ledger_ceiling, ledger_tat, ledger_holders,
        old_reserved) AS u (key, kind, reserved, settled, ceiling, tat, holders, before_reserved)
      WHERE u.before_reserved IS NULL;
    END IF;
  END IF;
  INSERT INTO events (tenant, idx, stream, seq, kind, at, clock_error, node, epoch, witness, principal, auth, prev, leaf,
    before, body)
  SELECT * FROM unnest(event_tenant, event_idx, event_stream, event_seq, event_kind, event_at, event_clock_error,
    event_node, event_epoch, event_witness, event_principal, event_auth, event_prev, event_leaf, event_before,
    event_body);
  IF cardinality(payload_idx) > 0 THEN
    INSERT INTO payloads (tenant, idx, role, commitment, key_id, ciphertext)
    SELECT * FROM unnest(payload_tenant, payload_idx, payload_role, payload_commitment, payload_key_id,
      payload_ciphertext);
  END IF;
  RETURN (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
END
$$;
