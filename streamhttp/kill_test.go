package streamhttp_test

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

var kills = flag.Int("kills", 3, "how often each kill -9 test kills its process")

// childRoleEnv makes the test binary play a role instead of testing. The end
// of stdin, which also comes when the test dies, ends it.
const childRoleEnv = "STREAMHTTP_TEST_ROLE"

func TestMain(m *testing.M) {
	var role func(args []string) error
	switch os.Getenv(childRoleEnv) {
	case "":
		os.Exit(m.Run())
	case "primary":
		role = primaryChild
	case "follower":
		role = followerChild
	}
	if err := role(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// primaryChild writes to the database args[0], and serves it at the address
// args[1].
func primaryChild(args []string) error {
	app, err := openApp(args[0], writerPragmas)
	if err != nil {
		return err
	}
	if err := createAccounts(app); err != nil {
		return err
	}
	db := litestream.NewDB(args[0])
	db.Logger = log.New(io.Discard, "", 0)
	if err := db.Open(); err != nil {
		return err
	}
	h := streamhttp.NewHandler(func(name string) (litestream.StreamClient, bool) { return db, name == "app" })
	h.Logger = nil
	h.HeartbeatInterval = 50 * time.Millisecond
	ln, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	go http.Serve(ln, h) // ends with the process
	fmt.Println("ready")
	stop := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(stop) }()
	for {
		select {
		case <-stop: // closed by the test: the process goes on serving until it is killed
			if err := db.Sync(ctx); err != nil {
				return err
			}
			fmt.Println("pos", db.Pos())
			select {}
		default:
		}
		if err := transfer(app); err != nil {
			return err
		}
	}
}

// followerChild follows the URL args[1] into the database args[0].
func followerChild(args []string) error {
	c := streamhttp.NewClient(args[1], "app")
	c.SilenceTimeout = time.Second
	db := litestream.NewDB(args[0])
	db.Logger = log.New(io.Discard, "", 0)
	db.StreamClient = c
	if err := db.Open(); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, db.Close())
}

type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	dead  bool
}

func startChild(t testing.TB, role string, args ...string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(exe, args...)}
	c.cmd.Env = append(os.Environ(), childRoleEnv+"="+role)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(out)
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

func (c *child) kill() {
	if !c.dead {
		c.dead = true
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait() // "signal: killed"
	}
}

// mustHear returns what follows a word.
func (c *child) mustHear(t testing.TB, word string) string {
	t.Helper()
	if !c.lines.Scan() {
		t.Fatalf("the child process ended before it said %q", word)
	}
	rest, ok := strings.CutPrefix(c.lines.Text(), word)
	if !ok {
		t.Fatalf("the child process said %q, want %q", c.lines.Text(), word)
	}
	return strings.TrimSpace(rest)
}

// freeAddr returns an address on which nobody listens.
func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// A follower that is killed at any moment goes on by itself, and is equal in
// the end; another process that reads its file never sees anything wrong.
func TestKill_Follower(t *testing.T) {
	primary, app := mustPrimary(t)
	s := newSite(t, "HTTP/1.1", one(primary), nil)
	path := filepath.Join(t.TempDir(), "follower")
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-done:
				ended <- nil
				return
			default:
			}
			if err := transfer(app); err != nil {
				ended <- err
				return
			}
		}
	}()
	// This process reads beside the child that writes.
	reader := mustApp(t, path, readerPragmas)
	for range *kills {
		c := startChild(t, "follower", path, s.url)
		c.mustHear(t, "ready")
		time.Sleep(rand.N(2 * time.Second)) // a position is noted once a second
		c.kill()
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			continue // killed before the first snapshot
		}
		err := checkAccounts(reader)
		if err != nil && !strings.Contains(err.Error(), "no such table") {
			t.Fatal(err)
		}
	}
	close(done)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	follower := litestream.NewDB(path)
	follower.Logger = log.New(io.Discard, "", 0)
	follower.StreamClient = s.client("app")
	mustOpen(t, follower)
	mustEqual(t, primary, follower)
	if err := checkAccounts(reader); err != nil {
		t.Error(err)
	}
	st := follower.Stats().Follower
	t.Logf("%d kills; the last follower needed %d snapshots", *kills, st.Snapshots)
}

// A follower outlives the primary that is killed, and is equal in the end.
func TestKill_Primary(t *testing.T) {
	checkGoroutines(t)
	path, addr := filepath.Join(t.TempDir(), "primary"), freeAddr(t)
	c := newClient(t, "http://"+addr+"/stream")
	c.SilenceTimeout = time.Second
	follower := mustFollower(t, c)
	reader := mustApp(t, follower.Path(), readerPragmas)
	for round := range *kills {
		before := follower.Stats().Follower.Streams
		p := startChild(t, "primary", path, addr)
		p.mustHear(t, "ready")
		if round%4 != 3 {
			await(t, "the follower connects", func() bool { return follower.Stats().Follower.Streams > before })
		}
		time.Sleep(rand.N(300 * time.Millisecond))
		p.kill()
		if follower.Pos().IsZero() {
			continue
		}
		if err := checkAccounts(reader); err != nil {
			t.Fatal(err)
		}
	}
	p := startChild(t, "primary", path, addr)
	p.mustHear(t, "ready")
	time.Sleep(rand.N(300 * time.Millisecond))
	p.stdin.Close()
	pos, err := litestream.ParsePos(p.mustHear(t, "pos"))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the follower has everything", func() bool {
		n, err := litestream.ComparePos(follower.Pos(), pos)
		return err == nil && n >= 0
	})
	p.kill()
	primary := litestream.NewDB(path)
	primary.Logger = log.New(io.Discard, "", 0)
	mustOpen(t, primary)
	if err := primary.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if got, want := mustReadPages(t, follower), mustReadPages(t, primary); string(got) != string(want) {
		t.Fatalf("the follower has %d bytes, and differs from the primary with %d", len(got), len(want))
	}
	if err := checkAccounts(reader); err != nil {
		t.Error(err)
	}
	st := follower.Stats().Follower
	t.Logf("%d kills; %d streams, %d snapshots", *kills, st.Streams, st.Snapshots)
}
