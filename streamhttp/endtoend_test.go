package streamhttp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// Three followers, one over each transport, keep up with a writer at full
// speed through VACUUM and changes of the schema. Their readers see nothing
// but states between transactions, and in the end all files are equal.
func TestEndToEnd_ThreeFollowers(t *testing.T) {
	primary, app := mustPrimary(t)
	var followers []*litestream.DB
	for _, transport := range transports {
		s := newSite(t, transport, one(primary), nil)
		followers = append(followers, mustFollower(t, s.client("app")))
	}
	mustEqual(t, primary, followers...)

	done := make(chan struct{})
	var wg sync.WaitGroup
	for i, f := range followers {
		reader := mustApp(t, f.Path(), readerPragmas)
		wg.Go(func() {
			if n, err := readUntil(done, reader); err != nil || n == 0 {
				t.Errorf("follower %d, after %d reads: %v", i, n, err)
			}
		})
	}
	wg.Go(func() { readWithShell(t, done, followers[0].Path()) })
	n, err := writeUntil(app, time.Now().Add(*writeTime))
	if err != nil {
		t.Error(err)
	}
	mustCatchUp(t, primary, followers...) // while they are being read
	close(done)
	wg.Wait()
	mustEqual(t, primary, followers...)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d transactions; the process holds %d MiB", n, m.Sys>>20)
	for i, f := range followers {
		st := f.Stats()
		t.Logf("follower %d: %d streams, %d snapshots", i, st.Follower.Streams, st.Follower.Snapshots)
		if st.Follower.Snapshots != 1 {
			t.Errorf("follower %d needed %d snapshots", i, st.Follower.Snapshots)
		}
	}
}

// readWithShell reads the follower's file from another process, that of
// SQLite's own command.
func readWithShell(t *testing.T, done <-chan struct{}, path string) {
	shell, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Logf("not read by the sqlite3 command: %v", err)
		return
	}
	n := 0
	for ; ; n++ {
		select {
		case <-done:
			t.Logf("%d reads by the sqlite3 command", n)
			if n == 0 {
				t.Error("none of them")
			}
			return
		default:
		}
		out, err := exec.Command(shell, "-batch", path, ".timeout 20000", "PRAGMA query_only=1",
			"SELECT sum(balance) FROM accounts", "PRAGMA integrity_check").CombinedOutput()
		if got, want := string(out), fmt.Sprintf("%d\nok\n", totalBalance); err != nil || got != want {
			t.Errorf("sqlite3, read %d: %v, %q; want %q", n, err, got, want)
			return
		}
	}
}

// An application that hands the position of its write to its next read sees
// the write on a follower.
func TestEndToEnd_ReadYourWrites(t *testing.T) {
	const header = "X-Position"
	primary, app := mustPrimary(t)
	s := newSite(t, "HTTP/1.1", one(primary), nil)
	follower := mustFollower(t, s.client("app"))
	mustEqual(t, primary, follower)
	reader := mustApp(t, follower.Path(), readerPragmas)

	write := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := app.Exec("UPDATE accounts SET note = ? WHERE id = 1", r.FormValue("note"))
		if err == nil {
			err = primary.Sync(r.Context())
		}
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		w.Header().Set(header, primary.Pos().String())
	}))
	defer write.Close()
	read := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), testTimeout)
		defer cancel()
		pos, err := litestream.ParsePos(r.Header.Get(header))
		if err == nil {
			err = follower.WaitPos(ctx, pos)
		}
		var note string
		if err == nil {
			err = reader.QueryRow("SELECT note FROM accounts WHERE id = 1").Scan(&note)
		}
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		io.WriteString(w, note)
	}))
	defer read.Close()

	for i := range 50 {
		want := fmt.Sprintf("note-%d", i)
		resp, err := http.Get(write.URL + "?note=" + want)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		req, err := http.NewRequestWithContext(t.Context(), "GET", read.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(header, resp.Header.Get(header))
		if resp, err = http.DefaultClient.Do(req); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
	mustEqual(t, primary, follower)
}

// A server of many databases gives each follower its own, by a name that is no
// path.
func TestEndToEnd_ServerOfDatabases(t *testing.T) {
	a, appA := mustPrimary(t)
	b, appB := mustPrimary(t)
	for range 10 {
		if err := transfer(appA); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := appB.Exec("CREATE TABLE b (x)"); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "HTTP/1.1", map[string]litestream.StreamClient{"a": a, "b": b}, nil)
	fa, fb := mustFollower(t, s.client("a")), mustFollower(t, s.client("b"))
	mustEqual(t, a, fa)
	mustEqual(t, b, fb)
	if bytes.Equal(mustReadPages(t, fa), mustReadPages(t, fb)) {
		t.Error("both followers have the same database")
	}
	other := mustFollower(t, s.client(a.Path()))
	await(t, "the path is not found", func() bool {
		err := other.Stats().LastError
		return err != nil && strings.Contains(err.Error(), streamhttp.ErrNotFound.Error())
	})
}

// How long a commit takes to be visible on a follower, with a writer of 200
// transactions a second.
func BenchmarkLag(b *testing.B) {
	primary, app := mustPrimary(b)
	s := newSite(b, "HTTP/1.1", one(primary), nil)
	follower := mustFollower(b, s.client("app"))
	mustEqual(b, primary, follower)
	reader := mustApp(b, follower.Path(), readerPragmas)
	var mu sync.Mutex
	var committed []time.Time // by number
	done := make(chan struct{})
	var lags []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			var seen int
			if err := reader.QueryRow("SELECT coalesce(note, 0) FROM accounts WHERE id = 1").Scan(&seen); err != nil {
				b.Error(err)
				return
			}
			now := time.Now()
			mu.Lock()
			for len(lags) < min(seen, len(committed)) { // also those that came together with others
				lags = append(lags, now.Sub(committed[len(lags)]))
			}
			mu.Unlock()
			time.Sleep(500 * time.Microsecond)
		}
	})
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	b.ResetTimer()
	for i := range b.N {
		<-ticker.C
		if _, err := app.Exec("UPDATE accounts SET note = ? WHERE id = 1", i+1); err != nil {
			b.Fatal(err)
		}
		mu.Lock()
		committed = append(committed, time.Now())
		mu.Unlock()
	}
	b.StopTimer()
	mustCatchUp(b, primary, follower)
	close(done)
	wg.Wait()
	mustEqual(b, primary, follower)
	if len(lags) > 0 {
		reportPercentiles(b, lags)
	}
}

func reportPercentiles(b *testing.B, d []time.Duration) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds())/1000, "p99-ms")
}
