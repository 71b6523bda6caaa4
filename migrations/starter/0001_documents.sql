-- Tables for applications that have none of their own: documents in, chunks with vectors out, users see only their own.

create extension if not exists vector;

create table public.documents (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null,
    name text not null,
    -- A document is a text here …
    content text,
    -- … or a file in a store, below the user's own folder: `{user_id}/…`.
    storage_path text,
    mime_type text,
    processing_status text not null default 'pending'
        check (processing_status in ('pending', 'processing', 'completed', 'skipped', 'failed')),
    error_message text,
    page_count int,
    chunk_count int,
    token_count bigint,
    processed_at timestamptz,
    deleted_at timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    check (content is not null or storage_path is not null)
);
create index documents_user on public.documents (user_id);
create index documents_updated on public.documents (updated_at);

-- `updated_at` moves when what the vectors are made of moves, and not when the worker writes its results.
create function public.documents_touch() returns trigger language plpgsql set search_path = '' as $$
begin
    new.updated_at := now();
    return new;
end
$$;
create trigger documents_touch before update of name, content, storage_path, mime_type, user_id, deleted_at
    on public.documents for each row execute function public.documents_touch();

create table public.document_chunks (
    id uuid primary key default gen_random_uuid(),
    document_id uuid not null references public.documents (id) on delete cascade,
    user_id uuid not null,
    chunk_index int not null,
    content text not null,
    token_count int not null check (token_count > 0),
    page_number int,
    section_title text,
    heading_level int,
    metadata jsonb not null default '{}',
    embedding vector(384) not null,
    created_at timestamptz not null default now(),
    unique (document_id, chunk_index)
);
create index document_chunks_user on public.document_chunks (user_id);
create index document_chunks_embedding on public.document_chunks using hnsw (embedding vector_cosine_ops);

alter table public.documents enable row level security;
alter table public.document_chunks enable row level security;

-- On Supabase users reach their own rows; elsewhere only the owner of the tables does, until it grants more.
do $$
begin
    if exists (select 1 from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'auth' and p.proname = 'uid')
        and exists (select 1 from pg_roles where rolname = 'authenticated') then
        execute 'create policy own_documents on public.documents for all to authenticated using (auth.uid() = user_id) with check (auth.uid() = user_id)';
        execute 'create policy own_chunks on public.document_chunks for select to authenticated using (auth.uid() = user_id)';
        execute 'grant select, insert, update, delete on public.documents to authenticated';
        execute 'grant select on public.document_chunks to authenticated';
    end if;
    if exists (select 1 from pg_roles where rolname = 'service_role') then
        execute 'grant select, insert, update, delete on public.documents, public.document_chunks to service_role';
    end if;
end
$$;
