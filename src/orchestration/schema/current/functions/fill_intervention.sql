CREATE FUNCTION orchestration.fill_intervention() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
BEGIN
  NEW.intervention_no := coalesce(
    NEW.intervention_no,
    (SELECT max(v.intervention_no)
     FROM orchestration.payment_outbox_interventions v
     WHERE v.outbox_id = NEW.outbox_id) + 1,
    1
  );
  NEW.acted_at := clock_timestamp();
  NEW.db_user := SESSION_USER;
  NEW.xact_id := pg_current_xact_id()::text::bigint;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.fill_intervention OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.fill_intervention FROM PUBLIC;
