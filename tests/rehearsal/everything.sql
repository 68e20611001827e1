-- A database with one of everything that a backup could lose. For MariaDB and MySQL.
CREATE TABLE people (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  name VARCHAR(80) NOT NULL,
  mail VARCHAR(120) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin UNIQUE,
  born DATE,
  size DECIMAL(12,4) NOT NULL DEFAULT 1.5,
  seen TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  initial CHAR(1) GENERATED ALWAYS AS (LEFT(name, 1)) STORED,
  CHECK (size > 0)
) COMMENT = 'it''s "people"';
CREATE TABLE files (
  id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  owner INT UNSIGNED,
  content LONGBLOB,
  KEY by_owner (owner, id),
  CONSTRAINT owned FOREIGN KEY (owner) REFERENCES people (id) ON DELETE CASCADE
);
CREATE TABLE log (at INT NOT NULL, text TEXT);
CREATE TABLE `odd ``name; ü` (`a b` DOUBLE, `select` BIT(9), j JSON);
CREATE TABLE parts (id INT NOT NULL, v VARCHAR(9)) PARTITION BY RANGE (id) (
  PARTITION low VALUES LESS THAN (10), PARTITION rest VALUES LESS THAN MAXVALUE);
CREATE TABLE empty_one (id INT PRIMARY KEY);

INSERT INTO people (name, mail, born, size, seen) VALUES
  ('Zoë 🦊 "quoted" \\ back''slash', 'zoe@example.org', '1990-02-28', 1.2345, '2026-01-01 00:00:00'),
  ('line\nbreak\ttab\0nul', NULL, NULL, 99999999.9999, '2026-10-25 00:30:00'),
  (');\nUSE `app`;\n-- Dump completed', 'x@example.org', '0001-01-01', 2, '2026-03-29 01:30:00');
INSERT INTO files (owner, content) VALUES
  (1, 0x00FF0A0D1A275C22), (2, ''), (3, NULL), (NULL, REPEAT(UNHEX('DEADBEEF00'), 60000));
INSERT INTO `odd ``name; ü` VALUES (0.1, b'100000001', '{"k": [1, "🧂"]}'), (1e300, NULL, NULL);
INSERT INTO parts VALUES (1, 'low'), (10, 'ten'), (1000, NULL);

CREATE VIEW adults AS SELECT id, name FROM people WHERE born < '2008-01-01';
CREATE VIEW adult_files AS SELECT f.id, a.name, LENGTH(f.content) AS size FROM files f JOIN adults a ON a.id = f.owner;
DELIMITER ;;
CREATE TRIGGER files_log AFTER INSERT ON files FOR EACH ROW
BEGIN
  -- Not at the restore: rows that a dump brings were logged before.
  INSERT INTO log VALUES (NEW.id, CONCAT('new 🗂 ', NEW.id));
END;;
CREATE FUNCTION shout(t VARCHAR(200)) RETURNS VARCHAR(210) DETERMINISTIC NO SQL RETURN CONCAT(UPPER(t), '!📣');;
CREATE PROCEDURE tidy(IN days INT)
  COMMENT 'with a line that looks like another thing'
BEGIN
  DECLARE n INT DEFAULT 0;
  SELECT COUNT(*) INTO n FROM log;
  DELETE FROM log WHERE at < days;
END;;
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2026-01-01 03:00:00' DO CALL tidy(30);;
DELIMITER ;
INSERT INTO files (owner, content) VALUES (1, 'logged');
