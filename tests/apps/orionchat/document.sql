-- OrionChat as its document describes it: enums, chunks that know their owner and page, usage in dollars.
create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role;
create extension vector schema extensions;

create type public.user_role as enum ('user', 'admin', 'moderator');
create type public.message_role as enum ('user', 'assistant', 'system');
create type public.processing_status as enum ('pending', 'processing', 'completed', 'failed');
create type public.model_provider as enum ('openai', 'anthropic', 'replicate');

create table public.user_profiles (
    id uuid primary key references auth.users (id) on delete cascade,
    email text unique not null,
    display_name text,
    role public.user_role not null default 'user',
    total_tokens_used bigint default 0,
    total_cost_usd numeric(12, 8) default 0,
    daily_token_limit integer default 100000,
    daily_cost_limit_usd numeric(10, 4) default 10
);

create table public.conversations (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references public.user_profiles (id) on delete cascade,
    title text,
    created_at timestamptz not null default now()
);

create table public.messages (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null references public.conversations (id) on delete cascade,
    user_id uuid not null references public.user_profiles (id) on delete cascade,
    role public.message_role not null,
    content text not null,
    provider public.model_provider,
    model text,
    tokens_used integer default 0,
    cost_usd numeric(10, 6) default 0,
    embedding extensions.vector(1536),
    tool_calls jsonb,
    attachments jsonb,
    created_at timestamptz not null default now()
);
create index on public.messages using ivfflat (embedding extensions.vector_cosine_ops) with (lists = 1);

create table public.files (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references public.user_profiles (id) on delete cascade,
    conversation_id uuid references public.conversations (id) on delete set null,
    original_name text not null,
    storage_path text not null unique,
    mime_type text not null,
    file_size bigint not null,
    processing_status public.processing_status not null default 'pending',
    extracted_text text,
    chunk_count integer default 0,
    created_at timestamptz not null default now()
);

create table public.document_chunks (
    id uuid primary key default gen_random_uuid(),
    file_id uuid not null references public.files (id) on delete cascade,
    user_id uuid not null references public.user_profiles (id) on delete cascade,
    content text not null,
    chunk_index integer not null,
    page_number integer,
    heading text,
    embedding extensions.vector(1536),
    metadata jsonb default '{}',
    created_at timestamptz not null default now()
);
create index on public.document_chunks using ivfflat (embedding extensions.vector_cosine_ops) with (lists = 1);

create table public.usage_logs (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references public.user_profiles (id) on delete cascade,
    conversation_id uuid references public.conversations (id) on delete set null,
    message_id uuid references public.messages (id) on delete set null,
    action text not null,
    provider public.model_provider,
    model text,
    tokens_used integer default 0,
    cost_usd numeric(12, 8) default 0,
    metadata jsonb,
    created_at timestamptz not null default now()
);

alter table public.user_profiles enable row level security;
alter table public.conversations enable row level security;
alter table public.messages enable row level security;
alter table public.files enable row level security;
alter table public.document_chunks enable row level security;
alter table public.usage_logs enable row level security;
create policy own on public.user_profiles using (auth.uid() = id);
create policy own on public.conversations using (auth.uid() = user_id);
create policy own on public.messages using (auth.uid() = user_id);
create policy own on public.files using (auth.uid() = user_id);
create policy own on public.document_chunks for select using (auth.uid() = user_id);
create policy own on public.usage_logs for select using (auth.uid() = user_id);
