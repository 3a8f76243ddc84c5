-- RFC 9562, method 3: 48 bits of milliseconds and 12 bits of their fraction. Both are one number,
-- milliseconds * 4096. It is computed from one reading of the clock, and PostgreSQL can inline it.
CREATE FUNCTION orchestration.uuid_v7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (
  overlay(
    lpad(to_hex((extract(epoch FROM clock_timestamp()) * 4096000)::bigint), 15, '0')
    PLACING '7' FROM 13 FOR 0
  ) || substr(gen_random_uuid()::text, 20)
)::uuid;

ALTER FUNCTION orchestration.uuid_v7 OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.uuid_v7 FROM PUBLIC;
