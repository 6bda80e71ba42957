package litestream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// PITFALLS row 3
func TestCheckSQLiteVersion(t *testing.T) {
	for version, ok := range map[string]bool{
		"3.51.3": true, "3.51.10": true, "3.54.0": true, "3.100.0": true, "4.0.0": true, "3.52": true, "3.51.3.1": true,
		"3.51.2": false, "3.7.0": false, "3.9.99": false, "2.99.99": false, "3.51": false,
		"": false, "3": false, "3.x.1": false, "three": false, "3..4": false,
	} {
		if err := checkSQLiteVersion(version); (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}

// A database opens under its very name, and beside it its WAL, whatever the
// name means to a URI.
//
// PITFALLS row 44
func TestDSNOpensOddPaths(t *testing.T) {
	for _, name := range []string{"plain", "a b", "a?b", "a?mode=memory", "a#b", "a%20b", "a%b", "a&b=c", "ü-数据库", "a+b", "a;b", "'a'", `"a"`, "a:b", "@", "file:a"} {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Skipf("%q: %v", name, err)
		}
		path := filepath.Join(dir, name)
		pool, err := openSQL(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := pool.sqlDB().Ping(); err == nil {
			t.Errorf("%q: a database that does not exist was created", name)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.sqlDB().Exec("PRAGMA journal_mode=WAL; CREATE TABLE t(x)"); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			t.Errorf("%q: another file was written: %v", name, err)
		}
		c, err := openConn(bg, pool)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		} else if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
		if ents, err := os.ReadDir(dir); err != nil || len(ents) > 3 {
			t.Errorf("%q: %v, %v", name, ents, err)
		}
	}
}

// PITFALLS row 44
func TestResolvePath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, name); err != nil {
			t.Skip(err)
		}
	}
	if err := errors.Join(os.Mkdir(in("data"), 0o700), os.WriteFile(in("data", "db"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	link(in("data", "db"), in("abs"))
	link(filepath.Join("data", "db"), in("rel"))
	link("rel", in("twice"))
	link("data", in("dirlink"))
	link(filepath.Join("data", "new"), in("dangling"))
	link("dangling", in("dangling2"))
	link(in("nowhere", "new"), in("lost"))
	link("self", in("self"))
	link("loop2", in("loop1"))
	link("loop1", in("loop2"))
	t.Chdir(dir)
	for path, want := range map[string]string{
		in("data", "db"):               in("data", "db"),
		in("abs"):                      in("data", "db"),
		in("rel"):                      in("data", "db"),
		in("twice"):                    in("data", "db"),
		in("dirlink", "db"):            in("data", "db"),
		in("dirlink", "new"):           in("data", "new"),
		in("dangling"):                 in("data", "new"),
		in("dangling2"):                in("data", "new"),
		in("lost"):                     in("nowhere", "new"),
		in("self"):                     in("self"),
		in("loop1"):                    in("loop1"),
		in("none", "db"):               in("none", "db"),
		"rel":                          in("data", "db"),
		"./data/../data/db":            in("data", "db"),
		filepath.Join("data", "later"): in("data", "later"),
	} {
		if got := resolvePath(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

func TestIsPageSize(t *testing.T) {
	want := map[int64]bool{}
	for _, n := range pageSizes {
		want[int64(n)] = true
	}
	for n := int64(-70000); n < 140000; n++ {
		if isPageSize(n) != want[n] {
			t.Fatalf("%d", n)
		}
	}
}

func TestReadDatabaseHeader(t *testing.T) {
	header := func(pageSize uint16, version byte) []byte {
		b := make([]byte, databaseHeaderSize)
		copy(b, databaseMagic)
		binary.BigEndian.PutUint16(b[16:], pageSize)
		b[18], b[19] = version, version
		return b
	}
	for _, test := range []struct {
		name string
		b    []byte
		want databaseHeader
		ok   bool
	}{
		{"wal", header(4096, 2), databaseHeader{4096, true}, true},
		{"rollback journal", header(512, 1), databaseHeader{512, false}, true},
		{"64 KiB", header(1, 2), databaseHeader{65536, true}, true},
		{"page size", header(1000, 2), databaseHeader{}, false},
		{"short", header(4096, 2)[:99], databaseHeader{}, false},
		{"encrypted", bytes.Repeat([]byte{0xa7}, 200), databaseHeader{}, false},
	} {
		got, err := readDatabaseHeader(bytes.NewReader(test.b))
		if (err == nil) != test.ok || test.ok && got != test.want || err == io.EOF {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
	if _, err := readDatabaseHeader(bytes.NewReader(nil)); err != io.EOF {
		t.Errorf("empty: %v", err)
	}
}

func TestRetryBusy(t *testing.T) {
	busy, other := busyError(t), errors.New("other")
	calls := 0
	fail := func(n int, err error) func() error {
		calls = 0
		return func() error {
			if calls++; calls <= n {
				return busy
			}
			return err
		}
	}
	if err := retryBusy(bg, time.Minute, fail(5, nil)); err != nil || calls != 6 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if err := retryBusy(bg, time.Minute, fail(2, other)); err != other || calls != 3 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if err := retryBusy(bg, 5*time.Millisecond, fail(1<<30, nil)); !isBusy(err) || calls < 2 {
		t.Errorf("%d calls, %v", calls, err)
	}
	ctx, cancel := context.WithCancel(bg)
	cancel()
	if err := retryBusy(ctx, time.Minute, fail(1<<30, nil)); !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// Every kind of row that the library reads, and every kind that it does not
// expect.
func TestRawConnRow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	host := restoreOpenSQLite(t, path)
	if _, err := host.Exec("CREATE TABLE t (x)"); err != nil {
		t.Fatal(err)
	}
	pool, err := openSQL(path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := pool.connect(bg)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.c.Close()
	var n int
	var s string
	if err := raw.row(bg, "SELECT 7, 'seven' UNION ALL SELECT 8, 'eight' ORDER BY 1", &n, &s); err != nil || n != 7 || s != "seven" {
		t.Errorf("row is %d %q, %v", n, s, err)
	}
	for query, want := range map[string]string{
		"SELECT x FROM t":     errNoRow.Error(),
		"SELECT 1, 2":         "2 columns, want 1",
		"SELECT 'a'":          "is a string, want *int",
		"SELECT NULL":         "is a <nil>, want *int",
		"SELECT x FROM other": "no such table",
	} {
		if err := raw.row(bg, query, &n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	if pool.sqlDB() != nil {
		t.Error("a closed pool opens another")
	}
}
