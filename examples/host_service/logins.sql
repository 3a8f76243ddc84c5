-- After the first upgrade, by the login that ran it: the logins of the service, each a member of one
-- runtime role and with rights on the shop's own tables.
CREATE ROLE shop_web LOGIN PASSWORD '...' IN ROLE symphony_ingest;
CREATE ROLE shop_desk LOGIN PASSWORD '...' IN ROLE symphony_executor;
CREATE ROLE shop_compliance LOGIN PASSWORD '...' IN ROLE symphony_control;
GRANT SELECT, INSERT ON public.orders, public.deliveries TO shop_web;
GRANT SELECT, UPDATE ON public.orders TO shop_desk;
GRANT SELECT ON public.deliveries TO shop_desk;
