CREATE FUNCTION orchestration.advance_audit_log_head() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  UPDATE orchestration.audit_log_head h
  SET chain_seq = last.chain_seq, record_hash = last.record_hash
  FROM (
    SELECT i.chain_seq, i.record_hash FROM inserted i ORDER BY i.chain_seq DESC LIMIT 1
  ) last
  WHERE h.chain_seq < last.chain_seq;
  RETURN NULL;
END
$$;

ALTER FUNCTION orchestration.advance_audit_log_head OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.advance_audit_log_head FROM PUBLIC;
