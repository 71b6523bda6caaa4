-- LGtempo as its production is: nodes have no vectors yet, and there is no queue.
create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role;
create extension vector schema extensions;
-- Nothing is found without its schema, as where the application pins its functions' search path.
do $$ begin execute format('alter database %I set search_path = ''''', current_database()); end $$;

create type public.node_type as enum ('goal', 'skill', 'emotion', 'session', 'accomplishment', 'belief');

create table public.agent_personae (
    id uuid primary key default gen_random_uuid(),
    name text not null
);

create table public.agent_knowledge_bases (
    id uuid primary key default gen_random_uuid(),
    agent_id uuid not null references public.agent_personae (id) on delete cascade,
    name text not null,
    document_count integer default 0,
    total_chunks integer default 0,
    indexing_status text default 'pending' check (indexing_status in ('pending', 'processing', 'completed', 'failed')),
    updated_at timestamptz default now()
);

create table public.knowledge_documents (
    id uuid primary key default gen_random_uuid(),
    knowledge_base_id uuid not null references public.agent_knowledge_bases (id) on delete cascade,
    title text not null,
    content text not null,
    source_url text,
    document_type text default 'text' check (document_type in ('text', 'markdown', 'pdf', 'html')),
    content_hash text,
    chunk_count integer default 0,
    embedding extensions.vector(1536),
    metadata jsonb default '{}',
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

create table public.knowledge_chunks (
    id uuid primary key default gen_random_uuid(),
    document_id uuid not null references public.knowledge_documents (id) on delete cascade,
    content text not null,
    embedding extensions.vector(1536),
    chunk_index integer not null,
    metadata jsonb default '{}',
    created_at timestamptz default now()
);
create index on public.knowledge_chunks using ivfflat (embedding extensions.vector_cosine_ops) with (lists = 1);

create table public.graph_nodes (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    node_type public.node_type not null,
    label text not null,
    description text,
    properties jsonb default '{}',
    created_at timestamptz default now(),
    updated_at timestamptz default now(),
    deleted_at timestamptz
);

alter table public.knowledge_documents enable row level security;
alter table public.knowledge_chunks enable row level security;
alter table public.graph_nodes enable row level security;
create policy own on public.graph_nodes using (auth.uid() = user_id);
