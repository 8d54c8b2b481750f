-- When a turn ended whose partial messages are still there, in milliseconds since 1970; NULL while it runs, and once they
-- were dropped. Turns of releases before keep theirs.
ALTER TABLE turns ADD COLUMN compactable_since BIGINT;

CREATE INDEX turns_compactable ON turns (compactable_since) WHERE compactable_since IS NOT NULL;
