-- Transcripts are paid by the minute and long recordings take many requests: what came back is kept as it lands, so that a worker
-- that dies pays only for what was in flight.

-- Durable, unlike parked vectors: a single row may be worth an hour of sound. Gone with the commit of its job, or by age.
create table gristmill.transcript_parts (
    job_id bigint not null references gristmill.embedding_jobs (id) on delete cascade,
    -- Of the recording, how it is cut, and how it is transcribed: parts of another are no parts of this one.
    content bytea not null check (length(content) = 32),
    part int not null check (part >= 0),
    text text not null,
    language text,
    language_probability float8,
    segments jsonb not null,
    kept_at timestamptz not null default now(),
    primary key (job_id, content, part)
);
create index transcript_parts_age on gristmill.transcript_parts (kept_at);

-- What a call for sound is measured in.
alter table gristmill.provider_calls add column seconds numeric check (seconds > 0);
