-- Somni as its live database is: older words of the transcription, 1536 dimensions for messages, job rows that are scheduled, and
-- a legacy knowledge base with vectors of two models.
create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role;
create extension vector schema extensions;

create type public.transcription_status as enum ('pending', 'processing', 'done', 'error', 'completed', 'failed');

create table public.dreams (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    title text,
    raw_transcript text,
    transcription_status public.transcription_status default 'pending',
    transcription_metadata jsonb,
    embedding_status text default 'pending'
        check (embedding_status in ('pending', 'processing', 'completed', 'failed', 'skipped')),
    embedding_error text,
    embedding_attempts integer default 0 check (embedding_attempts <= 3),
    embedding_started_at timestamptz,
    embedding_processed_at timestamptz,
    created_at timestamptz default now()
);

create table public.dream_embeddings (
    id uuid primary key default gen_random_uuid(),
    dream_id uuid not null references public.dreams (id) on delete cascade,
    chunk_index integer not null,
    chunk_text text not null,
    embedding extensions.vector(1024) not null,
    token_count integer not null check (token_count > 0),
    embedding_version text not null default 'bge-m3-v1',
    processing_time_ms integer,
    metadata jsonb default '{}',
    created_at timestamptz default now(),
    unique (dream_id, chunk_index, embedding_version)
);
create index on public.dream_embeddings using hnsw (embedding extensions.vector_cosine_ops);

create table public.themes (
    code text primary key,
    label text not null,
    description text,
    embedding extensions.vector(1024),
    sparse_embedding jsonb
);

create table public.dream_themes (
    dream_id uuid not null references public.dreams (id) on delete cascade,
    theme_code text not null references public.themes (code) on delete cascade,
    similarity double precision not null,
    chunk_index integer,
    created_at timestamptz default now(),
    primary key (dream_id, theme_code)
);

create table public.knowledge_fragments (
    id uuid primary key default gen_random_uuid(),
    scope text,
    text text not null,
    embedding extensions.vector(1024),
    metadata jsonb default '{}'
);

create table public.fragment_themes (
    fragment_id uuid not null references public.knowledge_fragments (id) on delete cascade,
    theme_code text not null references public.themes (code) on delete cascade,
    similarity double precision not null,
    primary key (fragment_id, theme_code)
);

create table public.conversations (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade
);

create table public.messages (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null references public.conversations (id) on delete cascade,
    sender text not null,
    content text not null,
    embedding extensions.vector(1536),
    created_at timestamptz default now()
);

create table public.knowledge_base (
    id uuid primary key default gen_random_uuid(),
    content text not null,
    embedding extensions.vector(1536),
    embedding_bge extensions.vector(1024),
    sparse_embedding jsonb,
    embedding_version text,
    metadata jsonb default '{}'
);

create table public.transcription_usage (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    dream_id uuid references public.dreams (id) on delete set null,
    duration_seconds integer not null,
    provider text not null,
    language_code text,
    character_count integer,
    created_at timestamptz default now()
);

-- Any signed-in user may write here.
create table public.embedding_jobs (
    id bigserial primary key,
    dream_id uuid not null unique references public.dreams (id) on delete cascade,
    status text not null default 'pending' check (status in ('pending', 'processing', 'completed', 'failed')),
    priority integer default 0,
    attempts integer default 0,
    max_attempts integer default 3,
    error_message text,
    created_at timestamptz default now(),
    scheduled_at timestamptz default now(),
    started_at timestamptz,
    completed_at timestamptz
);

-- A dream that becomes transcribed asks for its embedding; one that is inserted so does not, nor one that is transcribed again.
create function public.ask_for_embedding() returns trigger language plpgsql security definer set search_path = public as $$
begin
    if new.transcription_status = 'completed' and old.transcription_status is distinct from new.transcription_status then
        insert into embedding_jobs (dream_id) values (new.id) on conflict (dream_id) do nothing;
    end if;
    return new;
end $$;
create trigger ask_for_embedding after update on public.dreams for each row execute function public.ask_for_embedding();

alter table public.dreams enable row level security;
alter table public.dream_embeddings enable row level security;
alter table public.messages enable row level security;
create policy own on public.dreams using (auth.uid() = user_id);
create policy own on public.messages
    using (exists (select from public.conversations c where c.id = conversation_id and c.user_id = auth.uid()));
