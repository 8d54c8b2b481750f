-- Snapshots of workspaces: which there are. Their manifests and segments are in the snapshot storage.
CREATE TABLE snapshots (
    session  TEXT   NOT NULL,
    -- Of the manifest: 64 hexadecimal digits.
    digest   TEXT   NOT NULL,
    tenant   TEXT   NOT NULL,
    -- The last entry of the session's log when the workspace was listed.
    sequence BIGINT NOT NULL,
    -- The last turn that had ended then.
    turn     TEXT,
    size     BIGINT NOT NULL,
    taken_at BIGINT NOT NULL,
    -- 1 where it was found damaged: newer ones do not push it out.
    damaged  BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (session, digest),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, id)
);

CREATE INDEX snapshots_by_tenant ON snapshots (tenant, session);

-- Which installation this database is of: one row, made when it is asked for first. The snapshot storage has the same.
CREATE TABLE installation (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    id  TEXT   NOT NULL
);
