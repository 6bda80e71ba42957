package main

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	demoEntries = 1000
	demoClients = 4
)

// runDemo posts n entries, loses the data directory, and proves that the
// replica brings every entry back.
func runDemo(ctx context.Context, out io.Writer, n int) (err error) {
	dir, err := os.MkdirTemp("", "guestbook-demo-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cfg := config{
		addr:    "127.0.0.1:0", // any free port
		data:    filepath.Join(dir, "data"),
		replica: filepath.Join(dir, "replica"),
	}
	d := &demo{out: out, cfg: cfg, posts: demoPosts(n)}
	began := time.Now()

	before, err := d.firstLife(ctx)
	if err != nil {
		return fmt.Errorf("demo: first life: %w", err)
	}
	if err := d.do(step{"delete the data directory", func() error { return os.RemoveAll(cfg.data) }}); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if err := d.secondLife(ctx, before); err != nil {
		return fmt.Errorf("demo: second life: %w", err)
	}
	fmt.Fprintf(out, "all %d entries are back, after %s\n", n, round(time.Since(began)))
	return nil
}

type demo struct {
	out   io.Writer
	cfg   config
	posts map[string]string // message to name
}

// firstLife fills an empty guestbook, makes it durable and stops it. It
// returns the entries as the guestbook showed them.
func (d *demo) firstLife(ctx context.Context) (shown []entry, err error) {
	post := fmt.Sprintf("post %d entries over HTTP, %d at a time", len(d.posts), demoClients)
	err = d.live(ctx, "start with an empty data directory", func(s *service, v *visitor) []step {
		return []step{
			{post, func() error { return d.postAll(ctx, v) }},
			{"wait until the replica has everything", func() error { return s.db.SyncAndWait(ctx) }},
			{"read all pages", func() (err error) {
				if shown, err = v.entries(ctx); err != nil {
					return err
				}
				return comparePosts(d.posts, shown)
			}},
		}
	})
	return shown, err
}

// secondLife starts without data and proves that nothing is missing.
func (d *demo) secondLife(ctx context.Context, before []entry) error {
	return d.live(ctx, "start again: restore from the replica", func(s *service, v *visitor) []step {
		return []step{
			{"compare all pages with those of before", func() error {
				after, err := v.entries(ctx)
				if err != nil {
					return err
				}
				return compareEntries(before, after)
			}},
			{"count the rows", func() error {
				n, err := s.store.count(ctx)
				if err == nil && n != len(d.posts) {
					err = fmt.Errorf("want %d entries, the database has %d", len(d.posts), n)
				}
				return err
			}},
			{"PRAGMA integrity_check", func() error { return s.store.check(ctx) }},
		}
	})
}

// live starts the guestbook, does the steps that plan returns, and stops it.
func (d *demo) live(ctx context.Context, title string, plan func(*service, *visitor) []step) error {
	var s *service
	if err := d.do(step{title, func() (err error) {
		s, err = start(ctx, d.cfg)
		return err
	}}); err != nil {
		return err
	}
	v := newVisitor(s.url)
	err := d.do(plan(s, v)...)
	v.leave()
	return errors.Join(err, d.do(step{"stop", func() error {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return s.stop(stopCtx)
	}}))
}

// step is one line of the story.
type step struct {
	title string
	run   func() error
}

// do runs the steps up to the first that fails, and prints what each took.
func (d *demo) do(steps ...step) error {
	for _, s := range steps {
		began := time.Now()
		err := s.run()
		result := "ok"
		if err != nil {
			result = "FAILED"
		}
		fmt.Fprintf(d.out, "%-46s %8s  %s\n", s.title, round(time.Since(began)), result)
		if err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return nil
}

func round(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// demoPosts returns n entries whose messages all differ, with characters that
// HTML, forms and SQL treat in their own ways.
func demoPosts(n int) map[string]string {
	posts := make(map[string]string, n)
	for i := range n {
		message := fmt.Sprintf("Entry %d: <b>\"bold\"</b> & 'quoted'; 100%% + ü 世界 🎈\nsecond line%s", i, strings.Repeat(" more", i%50))
		posts[message] = fmt.Sprintf("Visitor <%d>", i%37)
	}
	return posts
}

func (d *demo) postAll(ctx context.Context, v *visitor) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(demoClients)
	for message, name := range d.posts {
		g.Go(func() error { return v.post(ctx, name, message) })
	}
	return g.Wait()
}

// comparePosts reports the first entry that was posted and is not shown, or
// shown and not posted.
func comparePosts(posts map[string]string, shown []entry) error {
	missing := maps.Clone(posts)
	for _, e := range shown {
		name, ok := missing[e.Message]
		if !ok || name != e.Name {
			return fmt.Errorf("entry %d was not posted so, or is shown twice: %q by %q", e.ID, e.Message, e.Name)
		}
		delete(missing, e.Message)
	}
	for message := range missing {
		return fmt.Errorf("%d entries are missing, such as %q", len(missing), message)
	}
	return nil
}

// compareEntries reports the first difference between two lists.
func compareEntries(want, got []entry) error {
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			return fmt.Errorf("want entry %+v, got %+v", want[i], got[i])
		}
	}
	if len(want) != len(got) {
		return fmt.Errorf("want %d entries, got %d", len(want), len(got))
	}
	return nil
}

// visitor uses a guestbook as a browser does. It is safe for concurrent use.
type visitor struct {
	url       string
	transport *http.Transport
	client    *http.Client
}

func newVisitor(url string) *visitor {
	tr := &http.Transport{MaxIdleConnsPerHost: demoClients}
	return &visitor{url: url, transport: tr, client: &http.Client{
		Transport:     tr,
		Timeout:       time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// leave closes the visitor's idle connections.
func (v *visitor) leave() { v.transport.CloseIdleConnections() }

func (v *visitor) post(ctx context.Context, name, message string) error {
	body := url.Values{"name": {name}, "message": {message}}.Encode()
	_, err := v.do(ctx, http.MethodPost, v.url, body, http.StatusSeeOther)
	return err
}

// entries reads all pages, newest entry first.
func (v *visitor) entries(ctx context.Context) ([]entry, error) {
	var all []entry
	for next := v.url; next != ""; {
		page, err := v.do(ctx, http.MethodGet, next, "", http.StatusOK)
		if err != nil {
			return nil, err
		}
		entries, older, err := parsePage(page)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", next, err)
		}
		all = append(all, entries...)
		next = ""
		if older != "" {
			next = v.url + strings.TrimPrefix(older, "/")
		}
	}
	return all, nil
}

// do sends a request and returns the response's body. Any other status than
// want is an error.
func (v *visitor) do(ctx context.Context, method, url, body string, want int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", method, url, err)
	}
	if resp.StatusCode != want {
		return "", fmt.Errorf("%s %s: want status %d, got %s", method, url, want, resp.Status)
	}
	return string(b), nil
}

// The parts of page.html that a visitor looks at.
var (
	articleRE = regexp.MustCompile(`(?s)<article id="entry-(\d+)"><h3>(.*?)</h3><time datetime="(.*?)">.*?</time><p>(.*?)</p></article>`)
	olderRE   = regexp.MustCompile(`<a rel="next" href="(.*?)">`)
)

// parsePage returns the entries on a page, and the path of the next one or "".
func parsePage(page string) (entries []entry, older string, err error) {
	for _, m := range articleRE.FindAllStringSubmatch(page, -1) {
		id, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			return nil, "", err
		}
		created, err := time.Parse(time.RFC3339Nano, m[3])
		if err != nil {
			return nil, "", err
		}
		entries = append(entries, entry{
			ID: id, Name: html.UnescapeString(m[2]), Message: html.UnescapeString(m[4]), Created: created,
		})
	}
	if m := olderRE.FindStringSubmatch(page); m != nil {
		older = html.UnescapeString(m[1])
	}
	return entries, older, nil
}
