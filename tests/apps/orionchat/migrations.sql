-- OrionChat as its migrations make it: words with checks, chunks and messages without an owner of their own, usage in whole cents.
create extension vector;

create table public.user_profiles (
    id uuid primary key references auth.users (id) on delete cascade,
    email text not null,
    total_tokens_used integer,
    total_cost_usd numeric(12, 8),
    daily_token_limit integer not null default 100000,
    daily_cost_limit_usd numeric(10, 2) not null default 10
);

create table public.conversations (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    title text not null default 'New chat',
    created_at timestamptz default now()
);

create table public.messages (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null references public.conversations (id) on delete cascade,
    role text not null check (role in ('user', 'assistant', 'system')),
    content text not null,
    embedding vector(1536),
    metadata jsonb default '{}',
    created_at timestamptz default now()
);

create table public.files (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    conversation_id uuid references public.conversations (id) on delete cascade,
    original_name text not null,
    storage_path text not null,
    mime_type text not null,
    file_size bigint not null,
    processing_status text default 'pending' check (processing_status in ('pending', 'processing', 'completed', 'failed')),
    extracted_text text,
    chunk_count integer default 0,
    created_at timestamptz default now()
);

create table public.document_chunks (
    id uuid primary key default gen_random_uuid(),
    file_id uuid not null references public.files (id) on delete cascade,
    content text not null,
    chunk_index integer not null,
    embedding vector(1536),
    metadata jsonb default '{}',
    created_at timestamptz default now()
);

create table public.usage_logs (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    resource_type text not null check (resource_type in ('tokens', 'images', 'searches', 'storage', 'document_processing')),
    amount integer not null,
    cost_cents integer not null default 0,
    metadata jsonb default '{}',
    created_at timestamptz default now()
);

alter table public.messages enable row level security;
alter table public.files enable row level security;
alter table public.document_chunks enable row level security;
create policy own on public.messages
    using (exists (select from public.conversations c where c.id = conversation_id and c.user_id = auth.uid()));
create policy own on public.files using (auth.uid() = user_id);
create policy own on public.document_chunks
    for select using (exists (select from public.files f where f.id = file_id and f.user_id = auth.uid()));
