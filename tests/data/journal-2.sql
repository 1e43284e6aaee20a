BEGIN TRANSACTION;
CREATE TABLE epochs (
            room INTEGER NOT NULL,
            next INTEGER NOT NULL,
            epoch TEXT NOT NULL UNIQUE,
            PRIMARY KEY (room, next)
        ) WITHOUT ROWID;
CREATE TABLE heads (clients_ever INTEGER NOT NULL, last_epoch INTEGER NOT NULL, clock REAL NOT NULL DEFAULT 0.0);
INSERT INTO "heads" VALUES(2,1736937045124,0.0);
CREATE TABLE nonces (
            seq INTEGER PRIMARY KEY,
            client INTEGER NOT NULL,
            count INTEGER NOT NULL,
            epoch TEXT NOT NULL,
            first INTEGER NOT NULL,
            nonces TEXT NOT NULL
        , checks BLOB NOT NULL DEFAULT x'');
INSERT INTO "nonces" VALUES(1,2,1,'1946983fc83',0,'["hello"]',X'01020304');
INSERT INTO "nonces" VALUES(2,1,3,'1946983fc84',0,'[1,2,3]',X'010203040102030401020304');
INSERT INTO "nonces" VALUES(3,1,1,'1946983fc84',3,'["w"]',X'01020304');
INSERT INTO "nonces" VALUES(4,2,1,'1946983fc83',1,'["it is quiet here"]',X'01020304');
CREATE TABLE rooms (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            epoch TEXT NOT NULL UNIQUE,
            first INTEGER NOT NULL,
            next INTEGER NOT NULL,
            seq INTEGER NOT NULL
        );
INSERT INTO "rooms" VALUES(1,'lobby','1946983fc83',0,2,4);
INSERT INTO "rooms" VALUES(2,'kitchen','1946983fc84',0,4,3);
CREATE TABLE runs (
            seq INTEGER PRIMARY KEY,
            room INTEGER NOT NULL,
            first INTEGER NOT NULL,
            messages INTEGER NOT NULL,
            bytes INTEGER NOT NULL,
            time TEXT NOT NULL,
            shown TEXT NOT NULL,
            client INTEGER NOT NULL,
            name TEXT NOT NULL,
            act INTEGER NOT NULL,
            text TEXT NOT NULL
        );
INSERT INTO "runs" VALUES(1,1,0,1,5,'2025-01-15T10:30:45.123Z','lobby',2,'bob',0,'hello');
INSERT INTO "runs" VALUES(2,2,0,3,13,'2025-01-15T10:30:45.123Z','kitchen',1,'alice',0,'one
two
three');
INSERT INTO "runs" VALUES(3,2,3,1,5,'2025-01-15T10:30:45.123Z','kitchen',1,'alice',1,'waves');
INSERT INTO "runs" VALUES(4,1,1,1,16,'2025-01-15T10:30:45.123Z','lobby',2,'bob',0,'it is quiet here');
CREATE TABLE sessions (
            digest BLOB PRIMARY KEY,
            client INTEGER NOT NULL,
            name TEXT NOT NULL,
            room TEXT NOT NULL,
            seen REAL NOT NULL
        ) WITHOUT ROWID;
INSERT INTO "sessions" VALUES(X'D2B1F1D83F0AD4F52DEC8A1E2091F5C94FFAD00ED3528362353FBE97AACD0187',2,'bob','lobby',0.0);
INSERT INTO "sessions" VALUES(X'E0CCA2965509DF678C8064F5E0B9076016FA752F88A6C749768DB83479450CC5',1,'alice','kitchen',0.0);
CREATE TABLE stamps (
            id INTEGER PRIMARY KEY,
            stamp TEXT NOT NULL,
            sealed INTEGER NOT NULL
        );
INSERT INTO "stamps" VALUES(2,'cca447b97b5db1b3',1);
INSERT INTO "stamps" VALUES(3,'5e57a4ca04b40bfe',0);
INSERT INTO "stamps" VALUES(4,'47179a5906d4a025',2);
CREATE UNIQUE INDEX runs_by_number ON runs (room, first);
CREATE INDEX sessions_by_seen ON sessions (seen);
CREATE INDEX nonces_by_client ON nonces (client, seq);
CREATE INDEX sessions_by_client ON sessions (client);
PRAGMA application_id=1835231338;
PRAGMA user_version=2;
COMMIT;
