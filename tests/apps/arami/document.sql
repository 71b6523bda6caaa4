-- Arami as its document describes it: users, sessions with their transcripts, and metrics of a session. The document has no
-- vectors; `create extension vector` is what its owner adds.
create extension vector;

create table public.users (
    id uuid primary key default gen_random_uuid(),
    email text unique,
    phone text unique,
    name text,
    preferred_language text default 'en' check (preferred_language in ('en', 'pt', 'es', 'fr')),
    onboarding_completed boolean default false,
    timezone text default 'UTC',
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

create table public.daily_sessions (
    id uuid primary key default gen_random_uuid(),
    user_id uuid references public.users (id) on delete cascade,
    session_type text not null
        check (session_type in ('face_to_face', 'spoken_presence', 'silent_reflection', 'written_clarity')),
    session_status text default 'completed'
        check (session_status in ('started', 'in_progress', 'completed', 'interrupted', 'failed')),
    duration_seconds integer,
    virtue_earned text,
    emotional_snapshot jsonb,
    key_insights jsonb,
    suggested_goals jsonb,
    conversation_transcript text,
    session_metadata jsonb,
    session_date date default current_date,
    started_at timestamptz,
    completed_at timestamptz,
    created_at timestamptz default now()
);
create index on public.daily_sessions (user_id);
create index on public.daily_sessions (session_status);

create table public.session_analytics (
    id uuid primary key default gen_random_uuid(),
    session_id uuid references public.daily_sessions (id) on delete cascade,
    user_id uuid references public.users (id) on delete cascade,
    metric_name text not null,
    metric_value numeric(10, 4),
    metric_unit text,
    calculated_at timestamptz default now(),
    unique (session_id, metric_name)
);

alter table public.users enable row level security;
alter table public.daily_sessions enable row level security;
alter table public.session_analytics enable row level security;
create policy own on public.users using (auth.uid() = id);
create policy own on public.daily_sessions using (auth.uid() = user_id);
create policy own on public.session_analytics using (auth.uid() = user_id);
