-- What a session has spent, added up as its turns end: tokens by kind, cost in millionths of a US dollar; and
-- whether the model API refused the credential when it was last asked.
ALTER TABLE sessions ADD COLUMN spent_input BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN spent_output BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN spent_cache_read BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN spent_cache_creation BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN cost_micros BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN model_refused BIGINT NOT NULL DEFAULT 0;
