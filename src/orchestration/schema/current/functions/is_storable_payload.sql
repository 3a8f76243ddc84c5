CREATE OR REPLACE FUNCTION orchestration.is_storable_payload(p_payload jsonb)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
RETURN ((octet_length((p_payload)::text) <= 1000000) AND (jsonb_typeof(p_payload) = 'object'::text) AND ((octet_length((p_payload)::text) <= 1000) OR ((NOT jsonb_path_exists(p_payload, 'strict $.**{501}'::jsonpath)) AND (NOT jsonb_path_exists(p_payload, 'strict $.**?(@ >= $"n" || @ <= -$"n")'::jsonpath, ((('{"n": 1'::text || repeat('0'::text, 1234)) || '}'::text))::jsonb)))));
-- owner: symphony_owner
