package litestream_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// notes is a program with a database and a replica of it.
type notes struct {
	dir    string
	client *fileclient.FileReplicaClient
	db     *litestream.DB
	host   *sql.DB
}

func openNotes() *notes {
	litestream.LogWriter = io.Discard
	dir, err := os.MkdirTemp("", "example")
	check(err)
	n := &notes{dir: dir, client: fileclient.NewFileReplicaClient(filepath.Join(dir, "replica"))}
	n.db = litestream.NewDB(filepath.Join(dir, "notes.db"))
	n.db.Replicas = []*litestream.Replica{litestream.NewReplica(n.db, "", n.client)}
	check(n.db.Open())
	n.host, err = sql.Open("sqlite", "file:"+n.db.Path()+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	check(err)
	_, err = n.host.Exec(`CREATE TABLE notes (text)`)
	check(err)
	return n
}

// add returns when the note is on the replica.
func (n *notes) add(text string) {
	_, err := n.host.Exec(`INSERT INTO notes VALUES (?)`, text)
	check(err)
	check(n.db.SyncAndWait(context.Background()))
}

// tick waits until the file system's clock, which is coarse, goes on.
func (n *notes) tick() {
	probe := filepath.Join(n.dir, "probe")
	var first time.Time
	for {
		check(os.WriteFile(probe, []byte("probe"), 0o600))
		info, err := os.Stat(probe)
		check(err)
		if first.IsZero() {
			first = info.ModTime()
		}
		if info.ModTime().After(first) {
			return
		}
	}
}

func (n *notes) close() {
	check(n.host.Close())
	check(n.db.Close())
	check(os.RemoveAll(n.dir))
}

// count returns how many notes a restored database holds.
func (n *notes) count(path string) (rows int) {
	db, err := sql.Open("sqlite", "file:"+path)
	check(err)
	defer db.Close()
	check(db.QueryRow(`SELECT COUNT(*) FROM notes`).Scan(&rows))
	return rows
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// A bad deployment deleted everything: the database is restored as it was
// before, to another file, and looked at.
func ExampleRestoreAt() {
	ctx := context.Background()
	n := openNotes()
	defer n.close()
	n.add("milk")
	n.add("bread")

	_, before, err := litestream.ReplicaClientTimeBounds(ctx, n.client) // or a time from a log
	check(err)
	n.tick()

	_, err = n.host.Exec(`DELETE FROM notes`)
	check(err)
	check(n.db.SyncAndWait(ctx))

	earlier := filepath.Join(n.dir, "earlier.db")
	_, err = litestream.RestoreAt(ctx, n.client, earlier, before, litestream.NewRestoreOptions())
	check(err)
	newest := filepath.Join(n.dir, "newest.db")
	_, err = litestream.RestoreLatest(ctx, n.client, newest, litestream.NewRestoreOptions())
	check(err)
	fmt.Println(n.count(earlier), "notes before,", n.count(newest), "now")
	// Output: 2 notes before, 0 now
}

// A dry run reads listings only: it tells what a restore would fetch, how much
// that is, and which moment it reaches.
func ExamplePlanRestore() {
	ctx := context.Background()
	n := openNotes()
	defer n.close()
	n.add("milk")
	n.add("bread")

	plan, err := litestream.PlanRestore(ctx, n.client, time.Time{}) // the zero time: the newest state
	check(err)
	fmt.Println("reaches what was captured:", plan.Generation == n.db.Pos().Generation)
	fmt.Print(maskDigits(plan.String()))
	// Output:
	// reaches what was captured: true
	// generation #
	// snapshot   #, # bytes, #
	// wal        # to #, # segments, # bytes
	// total      # files, # bytes
	// reaches    #/#:#, #
}

// maskDigits replaces what differs from run to run.
func maskDigits(s string) string {
	return regexp.MustCompile(`\d[\dT:.-]*Z|\b[0-9a-f]{16}\b|\d+`).ReplaceAllString(s, "#")
}

// How far back a replica reaches, and whether that is fresh enough, is seen
// without a restore.
func ExampleReplicaClientTimeBounds() {
	ctx := context.Background()
	n := openNotes()
	defer n.close()
	n.add("milk")

	oldest, newest, err := litestream.ReplicaClientTimeBounds(ctx, n.client)
	check(err)
	fmt.Println("in order:", !newest.Before(oldest))
	fmt.Println("fresh:", time.Since(newest) < time.Minute)
	// Output:
	// in order: true
	// fresh: true
}

// Every moment of the last thirty days can be restored. Snapshots, one a day,
// bound how much WAL a restore has to read.
func ExampleReplica_retention() {
	db := litestream.NewDB("app.db")
	r := litestream.NewReplica(db, "backup", fileclient.NewFileReplicaClient("/mnt/backup/app"))
	r.Retention = 30 * 24 * time.Hour
	r.RetentionCheckInterval = time.Hour
	r.SnapshotInterval = 24 * time.Hour
	db.Replicas = append(db.Replicas, r)
	fmt.Println(db.Replica("backup").Retention)
	// Output: 720h0m0s
}

// Retention runs by itself. Here it is enforced by hand, on a replica that
// keeps nothing but the newest snapshot and what follows it.
func ExampleReplica_EnforceRetention() {
	ctx := context.Background()
	n := openNotes()
	defer n.close()
	n.add("milk")
	r := n.db.Replicas[0]
	for _, text := range []string{"bread", "tea"} {
		check(n.db.Checkpoint(ctx, litestream.CheckpointModeTruncate)) // the next commit begins another WAL index
		n.add(text)
		_, err := r.Snapshot(ctx)
		check(err)
	}
	snapshots, err := r.Snapshots(ctx)
	check(err)
	fmt.Println("before:", len(snapshots))

	keeper := litestream.NewReplica(n.db, "", n.client)
	keeper.Retention = time.Nanosecond
	check(keeper.EnforceRetention(ctx))
	snapshots, err = r.Snapshots(ctx)
	check(err)
	fmt.Println("after:", len(snapshots))

	restored := filepath.Join(n.dir, "restored.db")
	_, err = litestream.RestoreLatest(ctx, n.client, restored, litestream.NewRestoreOptions())
	check(err)
	fmt.Println("notes:", n.count(restored))
	// Output:
	// before: 3
	// after: 1
	// notes: 3
}

// A backup is worth what its restore is worth. Validate restores from the
// replica to a scratch file and compares that with the live database;
// ValidationInterval does so again and again.
func ExampleReplica_Validate() {
	n := openNotes()
	defer n.close()
	n.add("milk")
	fmt.Println(n.db.Replicas[0].Validate(context.Background()))
	// Output: <nil>
}

// A platform keeps one database for each customer. They come and go while the
// server runs, and Close brings all of them to their replicas.
func ExampleServer() {
	litestream.LogWriter = io.Discard
	dir, err := os.MkdirTemp("", "example")
	check(err)
	defer os.RemoveAll(dir)

	server := litestream.NewServer()
	check(server.Open())
	construct := func(path string) (*litestream.DB, error) {
		db := litestream.NewDB(path)
		replica := filepath.Join(dir, "backup", filepath.Base(path))
		db.Replicas = []*litestream.Replica{litestream.NewReplica(db, "", fileclient.NewFileReplicaClient(replica))}
		return db, nil
	}
	for _, customer := range []string{"ann", "bob", "cleo"} {
		path := filepath.Join(dir, customer+".db")
		check(server.Watch(path, construct))
		host, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
		check(err)
		_, err = host.Exec(`CREATE TABLE orders (item)`)
		check(err)
		check(host.Close())
	}
	check(server.Unwatch(filepath.Join(dir, "bob.db"))) // moved to another machine
	for _, db := range server.DBs() {
		fmt.Println(filepath.Base(db.Path()))
	}
	check(server.Close())

	saved, err := os.ReadDir(filepath.Join(dir, "backup"))
	check(err)
	fmt.Println(len(saved), "replicas")
	// Output:
	// ann.db
	// cleo.db
	// 3 replicas
}
