-- Of workers whose configurations of a pipeline look at different columns, conditions or tenants, each took what the other had written for
-- a change, and opened it again, for as long as both ran. The one that started last says what a change is.
alter table gristmill.workers add column watches jsonb not null default '{}';
comment on column gristmill.workers.watches is 'for each pipeline, a digest of what its configuration here reads of a row to see a change';
