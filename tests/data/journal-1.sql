BEGIN TRANSACTION;
CREATE TABLE heads (clients_ever INTEGER NOT NULL, last_epoch INTEGER NOT NULL);
INSERT INTO "heads" VALUES(2,1795837514082);
CREATE TABLE nonces (
            seq INTEGER PRIMARY KEY,
            client INTEGER NOT NULL,
            count INTEGER NOT NULL,
            epoch TEXT NOT NULL,
            first INTEGER NOT NULL,
            nonces TEXT NOT NULL
        );
INSERT INTO "nonces" VALUES(1,2,1,'1a22041d162',0,'["hello"]');
INSERT INTO "nonces" VALUES(2,1,3,'1a22041cfa5',0,'[1,2,3]');
INSERT INTO "nonces" VALUES(3,1,1,'1a22041cfa5',3,'["w"]');
INSERT INTO "nonces" VALUES(4,2,1,'1a22041d162',1,'["it is quiet here"]');
CREATE TABLE rooms (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            epoch TEXT NOT NULL UNIQUE,
            first INTEGER NOT NULL,
            next INTEGER NOT NULL,
            seq INTEGER NOT NULL
        );
INSERT INTO "rooms" VALUES(2,'kitchen','1a22041cfa5',0,4,3);
INSERT INTO "rooms" VALUES(3,'lobby','1a22041d162',0,2,4);
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
INSERT INTO "runs" VALUES(1,3,0,1,5,'2026-11-28T03:45:14.083Z','lobby',2,'bob',0,'hello');
INSERT INTO "runs" VALUES(2,2,0,3,13,'2026-11-28T03:45:14.126Z','kitchen',1,'alice',0,'one
two
three');
INSERT INTO "runs" VALUES(3,2,3,1,5,'2026-11-28T03:45:14.130Z','kitchen',1,'alice',1,'waves');
INSERT INTO "runs" VALUES(4,3,1,1,16,'2026-11-28T03:45:14.134Z','lobby',2,'bob',0,'it is quiet here');
CREATE TABLE sessions (
            digest BLOB PRIMARY KEY,
            client INTEGER NOT NULL,
            name TEXT NOT NULL,
            room TEXT NOT NULL,
            seen REAL NOT NULL
        ) WITHOUT ROWID;
INSERT INTO "sessions" VALUES(X'D2B1F1D83F0AD4F52DEC8A1E2091F5C94FFAD00ED3528362353FBE97AACD0187',2,'bob','lobby',1.79583751564140081408e+09);
INSERT INTO "sessions" VALUES(X'E0CCA2965509DF678C8064F5E0B9076016FA752F88A6C749768DB83479450CC5',1,'alice','kitchen',1.7958375156417930126e+09);
CREATE UNIQUE INDEX runs_by_number ON runs (room, first);
CREATE INDEX sessions_by_seen ON sessions (seen);
CREATE INDEX nonces_by_client ON nonces (client, seq);
PRAGMA application_id=1835231338;
PRAGMA user_version=1;
COMMIT;
