-- The demo's table. Its own user may not create tables, so this is applied as root: see README.md.
CREATE TABLE IF NOT EXISTS demo_notes (
    id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    text VARCHAR(500) CHARACTER SET utf8mb4 NOT NULL,
    written TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);
