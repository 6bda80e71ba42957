// Package litestream streams a SQLite database to replicas from inside the
// program that uses it, and restores from them: the newest state, or any
// earlier moment. It is pure Go, and it is a library: there is no daemon, no
// command and no configuration file.
//
// # Use
//
// A program restores its database at startup if it is not there, opens it, and
// from then on every commit is elsewhere within milliseconds:
//
//	db := litestream.NewDB("app.db")
//	client := fileclient.NewFileReplicaClient("/mnt/backup/app")
//	db.Replicas = append(db.Replicas, litestream.NewReplica(db, "backup", client))
//
//	if err := db.EnsureExists(ctx); err != nil { // restores a lost database
//		return err
//	}
//	if err := db.Open(); err != nil { // from now on, commits are streamed
//		return err
//	}
//	defer db.Close() // brings the last commits to the replica
//
//	host, err := sql.Open("sqlite", "file:app.db?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
//	if err != nil {
//		return err
//	}
//	defer host.Close() // before db.Close
//
// The few types: a [DB] captures one database. A [Replica] brings what is
// captured to a [ReplicaClient], which stores it; package fileclient has one
// for directories, and package replicatest checks one of your own. A [Server]
// is a set of DBs with one lifecycle. [RestoreLatest], [RestoreAt] and
// [PlanRestore] need a client alone.
//
// # Terms
//
// A generation is an unbroken history of a database; it begins with a
// snapshot. A new one begins when continuity cannot be proven, for example
// after someone changed the database while the library was not running. Within
// a generation the WAL index counts how often SQLite restarted the WAL, and a
// position [Pos] is a byte offset in the WAL of one index. The shadow WAL is
// the local copy of what was captured, in the meta directory beside the
// database. A segment is one captured piece of one index, and a snapshot the
// whole database at the start of one.
//
// # Invariants
//
// The code cites them by number, and the tests check them.
//
//   - I1: Segments tile each index from 0 without gap or overlap; indexes are
//     dense.
//   - I2: Every position ends at the WAL's header or at a commit frame.
//   - I3: The cursor's checksum is SQLite's cumulative checksum of all bytes
//     before its offset. Frame checksums chain from the header, so equal frame
//     headers at one offset prove equal WALs up to it.
//   - I4: What a replica holds is durable there, file and directory, before its
//     position is visible.
//   - I5: No frame is checkpointed and overwritten before it is captured: a
//     heavy writer never costs a new generation.
//   - I6: The generation marker names only a generation whose first state is on
//     disk.
//   - I7: Nothing that a replica, an iterator or a snapshot still needs is
//     pruned.
//   - I8: No descriptor of the database or its -shm file is closed while the
//     process may hold SQLite locks on it, before the file is deleted.
//   - I9: The library writes nothing into the database: no table, no row. A
//     restored database is, byte for byte, the checkpointed original.
//
// # Durability
//
// [DB.SyncAndWait] returns when everything committed before the call is durable
// on every replica. Without it, a commit reaches the replicas after
// MonitorDelayInterval and the time of one write, or, under load, with the next
// sync of each replica's SyncInterval; [Replica.WaitPos] waits for that. The
// shadow WAL is a cache of the real WAL and is not synced: what a power loss
// tears is noticed at the next open or upload, and costs a new generation, not
// data.
//
// # Followers
//
// A DB with a StreamClient is a follower: a live copy of an upstream's database
// that local connections read, some 10 ms behind.
//
//	f := litestream.NewDB("copy.db")
//	f.StreamClient = client // of package streamhttp, or a *DB of this process
//	if err := f.Open(); err != nil {
//		return err
//	}
//	defer f.Close()
//	if err := f.WaitPos(ctx, pos); err != nil { // read your writes: pos is the primary's Pos after its Sync
//		return err
//	}
//
// Where there is no file, the follower makes it from a snapshot and renames it
// into place: open connections after that, when Pos is not zero. Later changes
// are applied through SQLite itself, whole transactions at a time, so that
// readers go on and never see a part of one. The result differs from the
// upstream's database in the change counter alone.
//
// Open connections to a follower's database with PRAGMA query_only=1. A local
// write is found before the next change is applied, reported as
// [ErrFollowerModified], and replaced by a snapshot of the upstream; so is a
// RESTART or TRUNCATE checkpoint that the follower did not run itself. What is
// written while the follower is closed is not found: do not.
//
// A follower reconnects by itself and goes on where it was. Its position is
// stored once a second, after what it stands for was synced; what was applied
// since is applied again. One that is too far behind, whose machine lost power,
// or whose upstream began another generation, gets a snapshot; the upstream
// waits for none ([ErrStreamTooSlow]). What arrives is verified like a restore.
// A page size that changed is [ErrPageSizeMismatch]. On a follower Sync,
// SyncAndWait, WALSegments and Stream return [ErrFollower]; Checkpoint works;
// Stats tells what is known of the upstream.
//
// # Promotion
//
// To promote a follower, close it, and open a DB without StreamClient, with
// Replicas, on its file. It begins a generation of its own. In a planned change,
// close the host's connections to the old primary first, call its SyncAndWait,
// wait for its Pos on the follower, and close it.
//
// A primary that comes back after another one has written to its replica's path
// is told so: its syncs, snapshots and retention return [ErrReplicaMoved], and
// write nothing there. It decides by the names of generations, which it keeps in
// the file lineage of its meta directory, and looks when it starts, when it
// begins a generation, and with each enforcement of retention; until then one
// that was never stopped may go on writing its own generation. A DB whose meta
// directory is new, or that was a follower in between, takes over whatever it
// finds. To make an old primary take over by force, close it and remove lineage.
//
// # In the host's process
//
// On Unix, closing any descriptor of a file drops every POSIX lock that the
// process holds on it, and SQLite's locks are such locks. So the library opens
// the database file once in a process and never closes that descriptor, never
// opens the -shm file, and asks the host for the same: do not open the database
// with package os while it is in use; [DB.WithFile] lends the descriptor. Two
// copies of SQLite in a process do not see each other's locks either: the host
// uses modernc.org/sqlite, as the library does, or runs the library in another
// process.
//
// The host uses WAL mode, on a local file system, and leaves checkpoints in
// mode TRUNCATE to [DB.Checkpoint]: its own TRUNCATE makes continuity
// unprovable and begins a new generation. Its automatic checkpoints are
// welcome.
//
// # Concurrency
//
// All methods of DB, Replica and Server are safe for concurrent use; exported
// fields are set before Open. Contexts end calls promptly; one that ends never
// loses what was captured. A DB runs one goroutine, as a follower too, each
// started replica one and at most one more for a snapshot, retention or
// validation, and the process one that watches files. A snapshot, of a replica or
// of a stream that begins with one, adds one that reads the database and, while
// it does, the compressor's, about one for each processor; databases are read one
// at a time. Close joins them.
//
// # Errors
//
// Errors say what was attempted and match the exported sentinels and types with
// [errors.Is] and [errors.As]. What fails in the background is logged once for
// each change, shown by [DB.Stats], and tried again.
package litestream
