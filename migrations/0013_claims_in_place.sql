-- A claim becomes done by an update of its row: with room for it on the same page the index stays as it is.
alter table outboxd.idempotency_keys set (fillfactor = 50);
