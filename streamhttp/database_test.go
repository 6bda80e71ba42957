package streamhttp_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/litestream"

	_ "modernc.org/sqlite"
)

var ctx = context.Background()

var writeTime = flag.Duration("write", 3*time.Second, "how long the end-to-end tests write")

const (
	accounts     = 100
	totalBalance = accounts * 1000
)

// openApp opens an application's own connections.
func openApp(path string, pragmas string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(20000)"+pragmas)
}

func mustApp(t testing.TB, path, pragmas string) *sql.DB {
	t.Helper()
	app, err := openApp(path, pragmas)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Close() })
	return app
}

const (
	writerPragmas = "&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)"
	readerPragmas = "&_pragma=query_only(1)"
)

// mustPrimary returns an open DB and its application, whose accounts hold
// totalBalance.
func mustPrimary(t testing.TB) (*litestream.DB, *sql.DB) {
	t.Helper()
	checkGoroutines(t)
	path := filepath.Join(t.TempDir(), "primary")
	app := mustApp(t, path, writerPragmas)
	if err := createAccounts(app); err != nil {
		t.Fatal(err)
	}
	db := litestream.NewDB(path)
	db.Logger = log.New(io.Discard, "", 0)
	mustOpen(t, db)
	return db, app
}

// mustFollower returns an open follower, in a directory of its own.
func mustFollower(t testing.TB, upstream litestream.StreamClient) *litestream.DB {
	t.Helper()
	db := litestream.NewDB(filepath.Join(t.TempDir(), "follower"))
	db.Logger = log.New(io.Discard, "", 0)
	db.StreamClient = upstream
	mustOpen(t, db)
	return db
}

func mustOpen(t testing.TB, db *litestream.DB) {
	t.Helper()
	if err := db.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

func createAccounts(app *sql.DB) error {
	_, err := app.Exec(`CREATE TABLE IF NOT EXISTS accounts (id INTEGER PRIMARY KEY, balance INTEGER, note BLOB)`)
	if err != nil {
		return err
	}
	_, err = app.Exec(`INSERT OR IGNORE INTO accounts
		WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?) SELECT i, 1000, NULL FROM n`, accounts)
	return err
}

// transfer moves money in one transaction of two statements.
func transfer(app *sql.DB) error {
	tx, err := app.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	amount := rand.N(100)
	for _, change := range []int{-amount, amount} {
		_, err := tx.Exec("UPDATE accounts SET balance = balance + ?, note = randomblob(?) WHERE id = ?",
			change, rand.N(300), 1+rand.N(accounts))
		if err != nil {
			return err
		}
	}
	return tx.Commit()
}

// checkAccounts proves that a reader sees a state between two transactions.
func checkAccounts(reader *sql.DB) error {
	var sum int
	if err := reader.QueryRow("SELECT sum(balance) FROM accounts").Scan(&sum); err != nil {
		return err
	}
	var ok string
	if err := reader.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil {
		return err
	}
	if sum != totalBalance || ok != "ok" {
		return fmt.Errorf("the sum of the accounts is %d, want %d; integrity_check: %s", sum, totalBalance, ok)
	}
	return nil
}

// mustCatchUp waits until the followers have everything.
func mustCatchUp(t testing.TB, primary *litestream.DB, followers ...*litestream.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := primary.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	for _, f := range followers {
		if err := f.WaitPos(ctx, primary.Pos()); err != nil {
			t.Fatalf("%v; the follower is at %s: %v", err, f.Pos(), f.Stats().LastError)
		}
	}
}

// mustEqual waits until the followers have everything, and compares their pages
// with the primary's, but for the change counter and the version beside it.
// Nobody may be reading: a checkpoint waits for readers.
func mustEqual(t testing.TB, primary *litestream.DB, followers ...*litestream.DB) {
	t.Helper()
	mustCatchUp(t, primary, followers...)
	want := mustReadPages(t, primary)
	for i, f := range followers {
		if got := mustReadPages(t, f); !bytes.Equal(got, want) {
			t.Fatalf("follower %d has %d bytes, and differs from the primary with %d", i, len(got), len(want))
		}
	}
}

func mustReadPages(t testing.TB, db *litestream.DB) (b []byte) {
	t.Helper()
	if err := db.Checkpoint(context.Background(), litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	if err := db.WithFile(func(f *os.File) (err error) {
		b, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(b) < 512 {
		t.Fatalf("%s has %d bytes", db.Path(), len(b))
	}
	clear(b[24:28])
	clear(b[92:96])
	return b
}

// writeUntil transfers, alters and vacuums at full speed until the time is
// over, and returns how many transactions there were.
func writeUntil(app *sql.DB, end time.Time) (n int, err error) {
	for ; time.Now().Before(end) && err == nil; n++ {
		switch {
		case n%1000 == 500:
			_, err = app.Exec("VACUUM")
		case n%300 == 100:
			_, err = app.Exec(fmt.Sprintf("CREATE TABLE extra%d (b); INSERT INTO extra%d VALUES (randomblob(200000))", n, n))
		case n%300 == 250:
			_, err = app.Exec(fmt.Sprintf("DROP TABLE IF EXISTS extra%d", n-150))
		default:
			err = transfer(app)
		}
	}
	return n, err
}

// readUntil checks the accounts over and over.
func readUntil(done <-chan struct{}, reader *sql.DB) (n int, err error) {
	for {
		select {
		case <-done:
			return n, nil
		default:
		}
		if err := checkAccounts(reader); err != nil {
			return n, errors.Join(fmt.Errorf("read %d", n), err)
		}
		n++
	}
}
