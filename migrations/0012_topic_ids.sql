-- Which topic a position is of: one that was deleted and made anew has its name, and another id.
alter table outboxd.group_positions add topic_id uuid;  -- null: not known, the broker told none
