-- What a Supabase project has before its owner makes a table, as far as the applications' tables name it.
create schema auth;
create table auth.users (id uuid primary key default gen_random_uuid(), email text);
create function auth.uid() returns uuid language sql stable as $$
    select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid
$$;

-- Roles belong to the whole server: tests beside this one may make them at the same time.
do $$
declare
    role text;
begin
    foreach role in array array['anon', 'authenticated', 'service_role'] loop
        begin
            execute format('create role %I nologin %s', role, case role when 'service_role' then 'bypassrls' end);
        exception when duplicate_object or unique_violation then null;
        end;
    end loop;
end $$;
grant usage on schema public, auth to anon, authenticated, service_role;
grant execute on function auth.uid() to anon, authenticated, service_role;
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
