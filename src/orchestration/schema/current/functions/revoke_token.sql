CREATE OR REPLACE FUNCTION orchestration.revoke_token(p_token_hash text, p_reason_code text, p_revoked_by text DEFAULT SESSION_USER, p_expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, p_revoked_at timestamp with time zone DEFAULT NULL::timestamp with time zone)
 RETURNS SETOF orchestration.revoked_tokens
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'orchestration', 'pg_temp'
 SET lock_timeout TO '2s'
AS $function$
BEGIN
  PERFORM orchestration.refuse_long_texts(
    'revoked_tokens', ARRAY['token_hash', 'reason_code', 'revoked_by'],
    ARRAY[p_token_hash, p_reason_code, p_revoked_by]
  );
  INSERT INTO orchestration.revoked_tokens
    (token_hash, revoked_at, expires_at, reason_code, revoked_by)
  VALUES (p_token_hash, p_revoked_at, p_expires_at, p_reason_code, p_revoked_by)
  ON CONFLICT DO NOTHING;
  RETURN QUERY
  SELECT r.* FROM orchestration.revoked_tokens r WHERE r.token_hash = p_token_hash;
END
$function$;
-- owner: symphony_owner
