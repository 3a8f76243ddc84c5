CREATE SCHEMA orchestration AUTHORIZATION symphony_owner;
