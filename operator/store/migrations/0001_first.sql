-- The first schema. Forward only: a change is a new file, never an edit of this one.
--
-- Types are those that SQLite, Postgres and CockroachDB all take: TEXT (ids are UUIDs in lower-case text), BIGINT (times are
-- milliseconds since 1970-01-01 UTC; sequences are epoch x 2^32 + n), BYTEA (SQLite stores what it is given). Every row names
-- its tenant.

CREATE TABLE agents (
    tenant          TEXT    NOT NULL,
    id              TEXT    NOT NULL,
    name            TEXT    NOT NULL,
    slug            TEXT,
    description     TEXT,
    current_version BIGINT  NOT NULL,
    created_at      BIGINT  NOT NULL,
    updated_at      BIGINT  NOT NULL,
    -- A deleted agent stays for the sessions that have one of its versions; its names are free again.
    deleted_at      BIGINT,
    PRIMARY KEY (tenant, id)
);

-- The names and slugs by which agents are found. One table for both, so that the primary key keeps a slug from being taken for
-- another agent's name.
CREATE TABLE agent_names (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    agent  TEXT NOT NULL,
    PRIMARY KEY (tenant, name),
    FOREIGN KEY (tenant, agent) REFERENCES agents (tenant, id)
);

CREATE INDEX agent_names_by_agent ON agent_names (tenant, agent);

-- A bundle is stored once per tenant and digest. Its bytes came with one upload: two archives of the same files may differ, so
-- chunks belong to the upload and not to the digest.
CREATE TABLE bundles (
    tenant     TEXT   NOT NULL,
    digest     TEXT   NOT NULL,
    upload     TEXT   NOT NULL,
    size       BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, digest)
);

CREATE UNIQUE INDEX bundles_by_upload ON bundles (tenant, upload);

CREATE TABLE bundle_chunks (
    tenant TEXT   NOT NULL,
    upload TEXT   NOT NULL,
    n      BIGINT NOT NULL,
    data   BYTEA  NOT NULL,
    PRIMARY KEY (tenant, upload, n)
);

CREATE TABLE agent_versions (
    tenant     TEXT   NOT NULL,
    agent      TEXT   NOT NULL,
    number     BIGINT NOT NULL,
    digest     TEXT   NOT NULL,
    settings   TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, agent, number),
    FOREIGN KEY (tenant, agent) REFERENCES agents (tenant, id),
    FOREIGN KEY (tenant, digest) REFERENCES bundles (tenant, digest)
);

CREATE TABLE sessions (
    id              TEXT   NOT NULL PRIMARY KEY,
    tenant          TEXT   NOT NULL,
    agent           TEXT   NOT NULL,
    agent_name      TEXT   NOT NULL,
    agent_version   BIGINT NOT NULL,
    state           TEXT   NOT NULL,
    paused_reason   TEXT,
    error           TEXT,
    sandbox         TEXT,
    epoch           BIGINT NOT NULL,
    last_sequence   BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    last_active_at  BIGINT NOT NULL,
    idempotency_key TEXT,
    options         TEXT   NOT NULL,
    metadata        TEXT   NOT NULL,
    UNIQUE (tenant, id),
    FOREIGN KEY (tenant, agent, agent_version) REFERENCES agent_versions (tenant, agent, number)
);

CREATE UNIQUE INDEX sessions_by_idempotency_key ON sessions (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX sessions_newest_first ON sessions (tenant, created_at, id);
CREATE INDEX sessions_by_agent ON sessions (tenant, agent_name, created_at);
CREATE INDEX sessions_by_state ON sessions (state);
CREATE INDEX sessions_placed ON sessions (sandbox) WHERE sandbox IS NOT NULL;

-- What listings filter by. sessions.metadata is the truth; it is read with its session in one row.
CREATE TABLE session_metadata (
    tenant  TEXT NOT NULL,
    session TEXT NOT NULL,
    name    TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (tenant, name, value, session),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id)
);

-- The event log. One row per batch and class (0 complete, 1 partial, 2 transcript), so that partials can be dropped as rows.
-- The large column stands last: what precedes it is read without it.
CREATE TABLE log_chunks (
    session        TEXT     NOT NULL,
    batch_last     BIGINT   NOT NULL,
    class          SMALLINT NOT NULL,
    tenant         TEXT     NOT NULL,
    first_sequence BIGINT   NOT NULL,
    last_sequence  BIGINT   NOT NULL,
    -- 0: as it is, 1: zstd.
    codec          SMALLINT NOT NULL,
    -- Bytes before compression.
    size           BIGINT   NOT NULL,
    data           BYTEA    NOT NULL,
    PRIMARY KEY (session, batch_last, class),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id)
);

-- A transcript is read without walking over the chunks of the other classes.
CREATE INDEX log_chunks_by_class ON log_chunks (session, class, batch_last);

CREATE TABLE turns (
    session        TEXT   NOT NULL,
    turn           TEXT   NOT NULL,
    tenant         TEXT   NOT NULL,
    first_sequence BIGINT NOT NULL,
    last_sequence  BIGINT,
    PRIMARY KEY (session, turn),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id)
);

CREATE INDEX turns_open ON turns (session) WHERE last_sequence IS NULL;

CREATE TABLE api_keys (
    id         TEXT   NOT NULL PRIMARY KEY,
    tenant     TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    hash       BYTEA  NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX api_keys_by_hash ON api_keys (hash);
