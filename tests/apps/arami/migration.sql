-- Arami as its migration makes it: people are `profiles` of Supabase's users, and there is no session_analytics.
create schema extensions;
grant usage on schema extensions to anon, authenticated, service_role;
create extension vector schema extensions;

create table public.profiles (
    id uuid primary key references auth.users (id) on delete cascade,
    name text,
    preferred_language text default 'en',
    created_at timestamptz default now()
);

create table public.daily_sessions (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references public.profiles (id) on delete cascade,
    session_type text not null,
    session_status text not null default 'started',
    duration_seconds integer,
    conversation_transcript text,
    session_metadata jsonb default '{}',
    session_date date not null default current_date,
    created_at timestamptz default now()
);

alter table public.profiles enable row level security;
alter table public.daily_sessions enable row level security;
create policy own on public.profiles using (auth.uid() = id);
create policy own on public.daily_sessions using (auth.uid() = user_id);
