-- A claim takes the oldest warm sandbox of one runner: found without looking at the others, however large the pool is.
CREATE INDEX sandboxes_warm_by_runner ON sandboxes (tenant, agent, agent_version, runner, changed_at) WHERE state = 'warm';
