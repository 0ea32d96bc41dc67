-- A key is found byte by byte: the order of a language is of no use to it, and dear. Its index is built anew.
alter table outboxd.idempotency_keys alter column key type text collate "C";
