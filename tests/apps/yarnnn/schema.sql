-- YARNNN as its document and migrations make it: no check on the status, no key on chunks, and old rows that lack their owner and
-- their path.
create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role;
create extension vector schema extensions;

create table public.workspaces (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    owner_id uuid not null references auth.users (id) on delete cascade,
    created_at timestamptz default now()
);

create table public.projects (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    description text,
    workspace_id uuid not null references public.workspaces (id) on delete cascade,
    created_at timestamptz default now()
);

create table public.documents (
    id uuid primary key default gen_random_uuid(),
    user_id uuid references auth.users (id) on delete cascade,
    project_id uuid references public.projects (id) on delete cascade,
    filename text not null,
    file_url text not null,
    storage_path text,
    file_type text,
    file_size integer,
    processing_status text default 'pending',
    processed_at timestamptz,
    error_message text,
    page_count integer,
    word_count integer,
    created_at timestamptz default now()
);

create table public.chunks (
    id uuid primary key default gen_random_uuid(),
    document_id uuid not null references public.documents (id) on delete cascade,
    content text not null,
    embedding extensions.vector(1536),
    chunk_index integer not null,
    page_number integer,
    metadata jsonb,
    token_count integer,
    created_at timestamptz default now()
);
create index on public.chunks (document_id);
create index on public.chunks using ivfflat (embedding extensions.vector_cosine_ops) with (lists = 1);

create table public.memories (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    project_id uuid references public.projects (id) on delete cascade,
    content text not null,
    embedding extensions.vector(1536),
    tags text[] default '{}',
    entities jsonb default '{}',
    importance double precision default 0.5,
    source_type text not null default 'chat',
    source_ref jsonb,
    is_active boolean default true,
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

alter table public.documents enable row level security;
alter table public.chunks enable row level security;
alter table public.memories enable row level security;
create policy own on public.documents using (auth.uid() = user_id);
create policy own on public.chunks
    for select using (exists (select from public.documents d where d.id = document_id and d.user_id = auth.uid()));
create policy own on public.memories using (auth.uid() = user_id);
