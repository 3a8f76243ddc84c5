CREATE FUNCTION orchestration.guard_policy_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, orchestration, pg_temp
AS $$
-- Longer than 70 lines because each of its nine checks raises its own error.
DECLARE
  v_replica boolean := current_setting('session_replication_role') = 'replica';
  v_copied boolean := v_replica AND orchestration.copies_a_subscription();
  v_detail jsonb := jsonb_build_object('id', NEW.id, 'status', NEW.status);
  v_active text;
  v_newest timestamptz;
  v_next timestamptz;
  v_changed boolean;
  v_grace_wrong boolean;
BEGIN
  IF TG_OP = 'INSERT' THEN
    IF NOT v_replica THEN
      NEW.db_user := SESSION_USER;
      NEW.xact_id := pg_current_xact_id()::text::bigint;
      NEW.created_at := coalesce(NEW.created_at, clock_timestamp());
    END IF;
    IF EXISTS (SELECT FROM orchestration.policy_versions p WHERE p.id = NEW.id) THEN
      -- The primary key rejects this row. NOT NULL must not reject it first.
      NEW.activated_at := coalesce(NEW.activated_at, clock_timestamp());
      RETURN NEW;
    END IF;
    IF v_copied THEN
      -- The version may have left ACTIVE since, and it may arrive before older versions.
      RETURN NEW;
    END IF;
    IF NEW.status IS DISTINCT FROM 'ACTIVE' THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-010', 'P7101', 'status of a new policy version must be ACTIVE',
        'policy_versions', v_detail,
        'Call rotate_policy_version, which inserts the version as ACTIVE.',
        'status'
      );
    END IF;
    IF NEW.created_at > clock_timestamp() OR NOT isfinite(NEW.created_at) THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-001', 'P7101', 'created_at must not be in the future', 'policy_versions', v_detail,
        'Leave created_at out: the database sets it.', 'created_at'
      );
    END IF;
    SELECT max(p.activated_at) INTO v_newest FROM orchestration.policy_versions p;
    v_next := greatest(clock_timestamp(), v_newest + interval '1 microsecond');
    NEW.activated_at := coalesce(NEW.activated_at, v_next);
    IF NEW.activated_at > v_next OR NEW.activated_at <= v_newest
      OR NOT isfinite(NEW.activated_at) THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-009', 'P7101',
        'activated_at must be later than in any other version and not in the future',
        'policy_versions', v_detail || jsonb_build_object('activated_at', NEW.activated_at),
        'Leave activated_at out: the database sets it.', 'activated_at'
      );
    END IF;
    SELECT p.id INTO v_active FROM orchestration.policy_versions p WHERE p.status = 'ACTIVE';
    IF v_active IS NOT NULL THEN
      PERFORM orchestration.raise_invariant(
        'INV-POL-005', 'P7104', format('policy version %s is already ACTIVE', v_active),
        'policy_versions', v_detail || jsonb_build_object('active', v_active),
        'Call rotate_policy_version to replace the ACTIVE version.', 'status'
      );
    END IF;
    RETURN NEW;
  END IF;

  v_detail := jsonb_build_object('id', OLD.id, 'from', OLD.status, 'to', NEW.status);
  v_changed := (NEW.id, NEW.description, NEW.checksum, NEW.activated_at, NEW.created_at,
      NEW.created_by, NEW.db_user, NEW.xact_id)
    IS DISTINCT FROM (OLD.id, OLD.description, OLD.checksum, OLD.activated_at, OLD.created_at,
      OLD.created_by, OLD.db_user, OLD.xact_id);
  v_grace_wrong :=
    NEW.status = 'GRACE' AND NOT coalesce(isfinite(NEW.grace_expires_at), false)
    OR NEW.status = 'ACTIVE' AND NEW.grace_expires_at IS NOT NULL
    OR OLD.status = 'GRACE'
      AND (NEW.grace_expires_at IS NULL OR NEW.grace_expires_at > OLD.grace_expires_at);
  IF v_changed THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-001', 'P7101', 'the id, content and origin of a policy version must not change',
      'policy_versions', v_detail, 'Call rotate_policy_version to add a new version.'
    );
  END IF;
  IF OLD.status = 'RETIRED' AND NEW IS DISTINCT FROM OLD THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-002', 'P7101', 'a RETIRED policy version must not change', 'policy_versions',
      v_detail, 'Call rotate_policy_version to add a new version.', 'status'
    );
  END IF;
  IF OLD.status = 'GRACE' AND NEW.status = 'ACTIVE' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-003', 'P7101', 'status must not change from GRACE to ACTIVE', 'policy_versions',
      v_detail, 'Call rotate_policy_version to add the old content as a new version.', 'status'
    );
  END IF;
  IF OLD.status = 'ACTIVE' AND NEW.status = 'RETIRED' THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-004', 'P7101', 'status must not change from ACTIVE to RETIRED without GRACE between',
      'policy_versions', v_detail,
      'Call rotate_policy_version with a p_grace of zero, then retire_policy_version.', 'status'
    );
  END IF;
  IF v_grace_wrong THEN
    PERFORM orchestration.raise_invariant(
      'INV-POL-011', 'P7101',
      'grace_expires_at must be set when status becomes GRACE and must not become later',
      'policy_versions', v_detail, 'Set grace_expires_at to its present value or an earlier time.',
      'grace_expires_at'
    );
  END IF;
  IF NOT v_replica THEN
    NEW.retired_at := CASE
      WHEN NEW.status <> 'RETIRED' THEN NULL
      WHEN OLD.status = 'RETIRED' THEN OLD.retired_at
      ELSE clock_timestamp()
    END;
    -- Null if a rotation retired the version. Only the login that called retire_policy_version can
    -- repeat that call.
    NEW.retired_db_user := CASE
      WHEN NEW.status <> 'RETIRED' OR NEW.retired_db_user IS NULL THEN NULL
      WHEN OLD.status = 'RETIRED' THEN OLD.retired_db_user
      ELSE SESSION_USER
    END;
  END IF;
  RETURN NEW;
END
$$;

ALTER FUNCTION orchestration.guard_policy_version OWNER TO symphony_owner;
REVOKE EXECUTE ON FUNCTION orchestration.guard_policy_version FROM PUBLIC;
