package litestream_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"example.com/litestream"
	"example.com/litestream/fileclient"

	_ "modernc.org/sqlite"
)

// A program restores its database when the file is missing, streams it while
// it runs, and brings the last commits to the replica when it ends.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	litestream.LogWriter = io.Discard // instead of standard output

	// Two lives of one program. The disk is lost in between.
	for range 2 {
		if err := serve(filepath.Join(dir, "app.db"), filepath.Join(dir, "backup")); err != nil {
			log.Fatal(err)
		}
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.Remove(filepath.Join(dir, "app.db"+suffix)); err != nil && !os.IsNotExist(err) {
				log.Fatal(err)
			}
		}
	}
	// Output:
	// visits: 1
	// visits: 2
}

func serve(path, backup string) (err error) {
	ctx := context.Background()
	db := litestream.NewDB(path)
	db.Replicas = []*litestream.Replica{
		litestream.NewReplica(db, "backup", fileclient.NewFileReplicaClient(backup)),
	}
	if err := db.EnsureExists(ctx); err != nil { // before anyone opens the file
		return err
	}
	if err := db.Open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }() // after the host's own connections

	host, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	if err != nil {
		return err
	}
	defer host.Close()
	if _, err := host.Exec(`CREATE TABLE IF NOT EXISTS visits (at)`); err != nil {
		return err
	}
	if _, err := host.Exec(`INSERT INTO visits VALUES (datetime())`); err != nil {
		return err
	}
	var n int
	if err := host.QueryRow(`SELECT COUNT(*) FROM visits`).Scan(&n); err != nil {
		return err
	}
	fmt.Println("visits:", n)
	return nil
}

// A test replicates to a temporary directory and restores from it, without
// any server.
func Example_test() {
	dir, err := os.MkdirTemp("", "example") // in a test: t.TempDir()
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	litestream.LogWriter = io.Discard
	ctx := context.Background()

	db := litestream.NewDB(filepath.Join(dir, "db"))
	client := fileclient.NewFileReplicaClient(filepath.Join(dir, "replica"))
	db.Replicas = []*litestream.Replica{litestream.NewReplica(db, "", client)}
	if err := db.Open(); err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	host, err := sql.Open("sqlite", "file:"+db.Path()+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Exec(`CREATE TABLE t (x); INSERT INTO t VALUES ('hello')`); err != nil {
		log.Fatal(err)
	}
	if err := db.SyncAndWait(ctx); err != nil {
		log.Fatal(err)
	}

	restored := filepath.Join(dir, "restored")
	if _, err := litestream.RestoreLatest(ctx, client, restored, litestream.NewRestoreOptions()); err != nil {
		log.Fatal(err)
	}
	copied, err := sql.Open("sqlite", "file:"+restored)
	if err != nil {
		log.Fatal(err)
	}
	defer copied.Close()
	var x string
	if err := copied.QueryRow(`SELECT x FROM t`).Scan(&x); err != nil {
		log.Fatal(err)
	}
	fmt.Println(x)
	// Output: hello
}

// An order is confirmed only when it has left the machine.
func ExampleDB_SyncAndWait() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	litestream.LogWriter = io.Discard
	ctx := context.Background()

	db := litestream.NewDB(filepath.Join(dir, "shop.db"))
	r := litestream.NewReplica(db, "backup", fileclient.NewFileReplicaClient(filepath.Join(dir, "backup")))
	db.Replicas = []*litestream.Replica{r}
	if err := db.Open(); err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	host, err := sql.Open("sqlite", "file:"+db.Path()+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	if err != nil {
		log.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Exec(`CREATE TABLE orders (item); INSERT INTO orders VALUES ('tea')`); err != nil {
		log.Fatal(err)
	}
	if err := db.SyncAndWait(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("safe on the replica:", r.Pos() == db.Pos())
	// Output: safe on the replica: true
}
