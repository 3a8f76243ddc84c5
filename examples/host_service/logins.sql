-- The login that ran the first upgrade runs this script after it. It makes the logins of the service:
-- each is a member of one runtime role and has rights on the shop's own tables.
CREATE ROLE shop_web LOGIN PASSWORD '...' IN ROLE symphony_ingest;
CREATE ROLE shop_desk LOGIN PASSWORD '...' IN ROLE symphony_executor;
CREATE ROLE shop_compliance LOGIN PASSWORD '...' IN ROLE symphony_control;
GRANT SELECT, INSERT ON public.orders, public.deliveries TO shop_web;
GRANT SELECT, UPDATE ON public.orders TO shop_desk;
GRANT SELECT ON public.deliveries TO shop_desk;
