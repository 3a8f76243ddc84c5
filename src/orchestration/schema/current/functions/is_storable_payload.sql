-- Must equal ck_instructions_payload and ck_payment_outbox_items_payload. The functions check a
-- payload before they store it, because the error of a CHECK constraint would print it.
CREATE FUNCTION orchestration.is_storable_payload(p_payload jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN octet_length(p_payload::text) <= 1000000
  AND jsonb_typeof(p_payload) = 'object'
  AND (octet_length(p_payload::text) <= 1000
    OR NOT jsonb_path_exists(p_payload, 'strict $.**{501}')
    AND NOT jsonb_path_exists(p_payload, 'strict $.** ? (@ >= $n || @ <= -$n)',
      ('{"n": 1' || repeat('0', 1234) || '}')::jsonb));

ALTER FUNCTION orchestration.is_storable_payload OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.is_storable_payload FROM PUBLIC;
