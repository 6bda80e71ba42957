package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
)

// site is a guestbook without replication.
type site struct {
	http.Handler
	store *store
}

func newSite(t *testing.T, stats litestream.DBStats) *site {
	t.Helper()
	st, err := openStore(t.Context(), filepath.Join(t.TempDir(), "odd #% name.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(st.check(context.Background()), st.close()); err != nil {
			t.Error(err)
		}
	})
	h, err := newHandler(st, func() litestream.DBStats { return stats })
	if err != nil {
		t.Fatal(err)
	}
	return &site{h, st}
}

func (s *site) get(t *testing.T, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, nil))
	return w
}

func (s *site) post(t *testing.T, form url.Values, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func (s *site) wantCount(t *testing.T, want int) {
	t.Helper()
	if got, err := s.store.count(t.Context()); err != nil || got != want {
		t.Fatalf("count: want %d, got %d, %v", want, got, err)
	}
}

func TestPostRedirectsToThePageThatShowsIt(t *testing.T) {
	s := newSite(t, litestream.DBStats{})
	for i := range 3 {
		w := s.post(t, url.Values{"name": {" A\n\tB "}, "message": {fmt.Sprintf("\r\nline %d\r\nnext\n", i)}}, nil)
		if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" {
			t.Fatalf("want a redirect to /, got %d to %q", w.Code, w.Header().Get("Location"))
		}
	}
	entries, older, err := parsePage(s.get(t, "/").Body.String())
	if err != nil || older != "" || len(entries) != 3 {
		t.Fatalf("want 3 entries on one page, got %+v, older %q, %v", entries, older, err)
	}
	for i, e := range entries {
		if want := fmt.Sprintf("line %d\nnext", 2-i); e.Message != want || e.Name != "A B" {
			t.Errorf("entry %d: want %q by %q, got %q by %q", i, want, "A B", e.Message, e.Name)
		}
		if age := time.Since(e.Created); age < 0 || age > time.Hour {
			t.Errorf("entry %d was created at %s", i, e.Created)
		}
	}
}

func TestAPostWithoutANameIsAnonymous(t *testing.T) {
	s := newSite(t, litestream.DBStats{})
	s.post(t, url.Values{"name": {"  "}, "message": {"hello"}}, nil)
	entries, _, err := parsePage(s.get(t, "/").Body.String())
	if err != nil || len(entries) != 1 || entries[0].Name != anonymous {
		t.Fatalf("want one entry by %q, got %+v, %v", anonymous, entries, err)
	}
}

func TestEntriesAreEscaped(t *testing.T) {
	s := newSite(t, litestream.DBStats{})
	const evil = `</p><script>alert("1")</script>`
	s.post(t, url.Values{"name": {evil}, "message": {evil}}, nil)
	w := s.get(t, "/")
	if strings.Contains(w.Body.String(), "<script") {
		t.Fatal("the page contains a visitor's script")
	}
	if csp := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") {
		t.Errorf("the page allows scripts: %q", csp)
	}
	entries, _, err := parsePage(w.Body.String())
	if err != nil || len(entries) != 1 || entries[0].Name != evil || entries[0].Message != evil {
		t.Fatalf("want the text unchanged, got %+v, %v", entries, err)
	}
}

func TestARejectedPostStoresNothing(t *testing.T) {
	long := func(n int) string { return strings.Repeat("世", n) }
	for _, tt := range []struct {
		name   string
		form   url.Values
		header http.Header
		want   int
	}{
		{"no message", url.Values{"name": {"A"}, "message": {" \r\n"}}, nil, 422},
		{"long message", url.Values{"message": {long(maxMessage + 1)}}, nil, 422},
		{"long name", url.Values{"name": {long(maxName + 1)}, "message": {"m"}}, nil, 422},
		{"not text", url.Values{"message": {"\xff"}}, nil, 422},
		{"zero byte", url.Values{"message": {"a\x00b"}}, nil, 422},
		{"large body", url.Values{"message": {"m"}, "other": {strings.Repeat("x", maxBody)}}, nil, 413},
		{"cross site", url.Values{"message": {"m"}}, http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		{"same site", url.Values{"message": {"m"}}, http.Header{"Sec-Fetch-Site": {"same-site"}}, 403},
		{"other origin", url.Values{"message": {"m"}}, http.Header{"Origin": {"http://evil.example"}}, 403},
		{"bad encoding", nil, http.Header{"Content-Type": {"application/x-www-form-urlencoded; x"}}, 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t, litestream.DBStats{})
			if w := s.post(t, tt.form, tt.header); w.Code != tt.want {
				t.Errorf("want status %d, got %d: %s", tt.want, w.Code, w.Body)
			}
			s.wantCount(t, 0)
		})
	}
}

func TestTheLongestPostIsAccepted(t *testing.T) {
	s := newSite(t, litestream.DBStats{})
	form := url.Values{"name": {strings.Repeat("🎈", maxName)}, "message": {strings.Repeat("🎈", maxMessage)}}
	w := s.post(t, form, http.Header{"Sec-Fetch-Site": {"same-origin"}})
	if w.Code != http.StatusSeeOther {
		t.Fatalf("want a redirect, got %d: %s", w.Code, w.Body)
	}
	s.wantCount(t, 1)
}

func TestARejectedFormKeepsWhatWasTyped(t *testing.T) {
	s := newSite(t, litestream.DBStats{})
	w := s.post(t, url.Values{"name": {"Ada"}, "message": {strings.Repeat("x", maxMessage+1)}}, nil)
	for _, want := range []string{`role="alert"`, `value="Ada"`, strings.Repeat("x", maxMessage+1)} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the page lacks %.40q", want)
		}
	}
}

func TestOtherRequests(t *testing.T) {
	s := newSite(t, litestream.DBStats{})
	for target, want := range map[string]int{
		"/?before=x": 400, "/?before=-1": 400, "/?before=0": 400, "/?before=1": 200, "/other": 404,
	} {
		if w := s.get(t, target); w.Code != want {
			t.Errorf("GET %s: want %d, got %d", target, want, w.Code)
		}
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodDelete, "/", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("DELETE /: want 405, got %d", w.Code)
	}
}

func TestPagesShow100EntriesEachAndAllOfThem(t *testing.T) {
	s := newSite(t, litestream.DBStats{})
	const n = 2*pageSize + 1
	for i := range n {
		if err := s.store.add(t.Context(), "A", fmt.Sprint(i), time.UnixMilli(int64(i))); err != nil {
			t.Fatal(err)
		}
	}
	next := n - 1
	for page, target := 0, "/"; target != ""; page++ {
		entries, older, err := parsePage(s.get(t, target).Body.String())
		if err != nil {
			t.Fatal(err)
		}
		if want := min(pageSize, next+1); len(entries) != want {
			t.Fatalf("page %d: want %d entries, got %d", page, want, len(entries))
		}
		for _, e := range entries {
			if e.Message != fmt.Sprint(next) || !e.Created.Equal(time.UnixMilli(int64(next))) {
				t.Fatalf("page %d: want entry %d, got %+v", page, next, e)
			}
			next--
		}
		target = older
	}
	if next != -1 {
		t.Errorf("%d entries are on no page", next+1)
	}
}

func TestTheStatusLineTellsTheState(t *testing.T) {
	pos := litestream.Pos{Generation: "0123456789abcdef", Index: 1, Offset: 32}
	bad := errors.New("disk <full>")
	for _, tt := range []struct {
		name  string
		stats litestream.DBStats
		want  status
	}{
		{"new", litestream.DBStats{}, status{Position: "not yet known", Lag: "caught up"}},
		{"caught up", litestream.DBStats{Pos: pos, Replicas: []litestream.ReplicaStats{{}}},
			status{Position: pos.String(), Lag: "caught up"}},
		{"the slowest replica counts",
			litestream.DBStats{Pos: pos, Replicas: []litestream.ReplicaStats{{Lag: 1}, {Lag: 1500 * time.Millisecond}, {}}},
			status{Position: pos.String(), Lag: "1.5s behind"}},
		{"all errors", litestream.DBStats{Pos: pos, LastError: bad, Replicas: []litestream.ReplicaStats{{Name: "x", LastError: bad}}},
			status{Position: pos.String(), Lag: "caught up", Error: "disk <full>\nreplica \"x\": disk <full>"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := newStatus(tt.stats); got != tt.want {
				t.Fatalf("want %+v, got %+v", tt.want, got)
			}
			page := newSite(t, tt.stats).get(t, "/").Body.String()
			for _, want := range []string{tt.want.Position, tt.want.Lag} {
				if !strings.Contains(page, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			if got := strings.Contains(page, "disk &lt;full&gt;"); got != (tt.want.Error != "") {
				t.Errorf("page shows the error: %v", got)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	cfg, err := parseFlags(nil, io.Discard)
	if want := (config{"127.0.0.1:8080", "guestbook-data", "guestbook-replica", false}); err != nil || cfg != want {
		t.Errorf("defaults: want %+v, got %+v, %v", want, cfg, err)
	}
	for _, args := range [][]string{{"-nonsense"}, {"extra"}} {
		var out bytes.Buffer
		if _, err := parseFlags(args, &out); err == nil || out.Len() == 0 {
			t.Errorf("%q: want an error and a word about it, got %v, %q", args, err, &out)
		}
	}
}

// TestRunSurvivesTheLossOfItsData runs the guestbook as main does, three
// times: empty, after a clean stop, and after its data directory was deleted.
func TestRunSurvivesTheLossOfItsData(t *testing.T) {
	dir := t.TempDir()
	cfg := config{addr: "127.0.0.1:0", data: filepath.Join(dir, "data"), replica: filepath.Join(dir, "replica")}
	posts := map[string]string{}
	for life := range 3 {
		withRunning(t, cfg, func(v *visitor) {
			message := fmt.Sprintf("life %d", life)
			posts[message] = "A"
			if err := v.post(t.Context(), "A", message); err != nil {
				t.Error(err)
			}
			shown, err := v.entries(t.Context())
			if err = errors.Join(err, comparePosts(posts, shown)); err != nil {
				t.Errorf("life %d: %v", life, err)
			}
		})
		if life == 1 {
			if err := os.RemoveAll(cfg.data); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// withRunning calls fn while the guestbook runs, and ends it as Ctrl-C does.
func withRunning(t *testing.T, cfg config, fn func(*visitor)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, cfg, pw)
		pw.CloseWithError(err)
		done <- err
	}()
	var addr string
	if _, err := fmt.Fscanf(pr, "guestbook: serving %s", &addr); err != nil {
		t.Fatalf("wait for the address: %v", err)
	}
	drained := make(chan struct{})
	go func() { defer close(drained); io.Copy(io.Discard, pr) }()
	v := newVisitor(addr)
	fn(v)
	v.leave()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	<-drained
}

func TestRunReportsAnAddressInUse(t *testing.T) {
	ln := httptest.NewServer(http.NotFoundHandler())
	defer ln.Close()
	dir := t.TempDir()
	cfg := config{addr: ln.Listener.Addr().String(), data: filepath.Join(dir, "data"), replica: filepath.Join(dir, "replica")}
	if err := run(t.Context(), cfg, io.Discard); err == nil || !strings.Contains(err.Error(), cfg.addr) {
		t.Fatalf("want an error that names %s, got %v", cfg.addr, err)
	}
}

func TestDemoBringsEveryEntryBack(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("TMP", tmp) // Windows
	n := demoEntries
	if testing.Short() {
		n = 150
	}
	var out bytes.Buffer
	if err := runDemo(t.Context(), &out, n); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if want := fmt.Sprintf("all %d entries are back", n); !strings.Contains(out.String(), want) {
		t.Errorf("want %q, got:\n%s", want, &out)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left %v behind, %v", left, err)
	}
}

func TestDemoNoticesEveryDifference(t *testing.T) {
	posts := map[string]string{"one": "A", "two": "B"}
	good := []entry{{ID: 2, Name: "B", Message: "two"}, {ID: 1, Name: "A", Message: "one"}}
	if err := errors.Join(comparePosts(posts, good), compareEntries(good, good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]entry{
		"lost":    good[:1],
		"none":    nil,
		"twice":   {good[0], good[1], good[1]},
		"message": {good[0], {ID: 1, Name: "A", Message: "One"}},
		"name":    {good[0], {ID: 1, Name: "B", Message: "one"}},
	} {
		if comparePosts(posts, bad) == nil {
			t.Errorf("%s: comparePosts saw nothing", name)
		}
		if compareEntries(good, bad) == nil {
			t.Errorf("%s: compareEntries saw nothing", name)
		}
	}
	for name, bad := range map[string][]entry{
		"order": {good[1], good[0]},
		"id":    {good[0], {ID: 3, Name: "A", Message: "one"}},
		"time":  {good[0], {ID: 1, Name: "A", Message: "one", Created: time.UnixMilli(1)}},
	} {
		if compareEntries(good, bad) == nil {
			t.Errorf("%s: compareEntries saw nothing", name)
		}
	}
}
