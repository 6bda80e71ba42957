package litestream_test

import (
	"bufio"
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// childRoleEnv makes the test binary play a role instead of testing: tests that
// need a second process run it again. The command line holds the role's
// arguments. Roles talk in lines on stdin and stdout; the end of stdin, which
// also comes when the test dies, ends them.
const childRoleEnv = "LITESTREAM_TEST_ROLE"

var childRoles = map[string]func(args []string) error{
	"visit":   visitChild,
	"manage":  manageChild,
	"crash":   crashChild,
	"restore": restoreChild,
}

func TestMain(m *testing.M) {
	name := os.Getenv(childRoleEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	role := childRoles[name]
	if role == nil {
		fmt.Fprintf(os.Stderr, "no role %q\n", name)
		os.Exit(2)
	}
	if err := role(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// childProcess is a process that plays a role.
type childProcess struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Scanner
	stderr bytes.Buffer
	ended  func() error // waits for the process; may be called again
}

// startChild starts a process. The cleanup kills it if it still runs.
func startChild(t testing.TB, role string, args ...string) *childProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &childProcess{cmd: exec.Command(exe, args...)}
	c.cmd.Env = append(os.Environ(), childRoleEnv+"="+role)
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdout = bufio.NewScanner(out)
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.ended = sync.OnceValue(c.cmd.Wait)
	t.Cleanup(func() { c.kill() })
	return c
}

// kill ends the process with SIGKILL and waits for it. All of its output must
// have been read, or it is lost.
func (c *childProcess) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	_ = c.ended()            // "signal: killed"
}

// mustEnd waits for the process to end by itself, without an error.
func (c *childProcess) mustEnd(t testing.TB) {
	t.Helper()
	if err := c.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	for c.stdout.Scan() {
	}
	if err := c.ended(); err != nil {
		t.Fatalf("child process: %v\n%s", err, &c.stderr)
	}
}

// say sends a line to the process.
func (c *childProcess) say(t testing.TB, format string, a ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(c.stdin, format+"\n", a...); err != nil {
		t.Fatalf("child process: %v\n%s", err, &c.stderr)
	}
}

// mustHear reads the next line, which must begin with the word, and returns
// what follows it.
func (c *childProcess) mustHear(t testing.TB, word string) string {
	t.Helper()
	if !c.stdout.Scan() {
		err := errors.Join(c.stdout.Err(), c.ended())
		t.Fatalf("child process ended before it said %q: %v\n%s", word, err, &c.stderr)
	}
	got, rest, _ := strings.Cut(c.stdout.Text(), " ")
	if got != word {
		t.Fatalf("child process said %q, want %q", c.stdout.Text(), word)
	}
	return rest
}

// tell writes one line to the test that started this process.
func tell(format string, a ...any) {
	os.Stdout.WriteString(fmt.Sprintf(format, a...) + "\n") // one write: lines of goroutines do not mix
}

// awaitEnd returns when stdin ends.
func awaitEnd() error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// childHost opens the database as a host does, in a child process.
func childHost(path string) (*sql.DB, error) {
	host, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)")
	if err != nil {
		return nil, err
	}
	return host, host.Ping()
}

// childDB returns a DB with one file replica, in a child process.
func childDB(path, replica string, w io.Writer) *litestream.DB {
	db := litestream.NewDB(path)
	db.Logger = log.New(w, "", 0)
	r := litestream.NewReplica(db, "file", fileclient.NewFileReplicaClient(replica))
	r.Logger = db.Logger
	db.Replicas = append(db.Replicas, r)
	return db
}

// childAwaits waits until ok returns true, within a time that only a fault
// exceeds.
func childAwaits(what string, ok func() bool) error {
	for deadline := time.Now().Add(20 * time.Second); ; {
		if ok() {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("timeout: " + what)
		}
		time.Sleep(5 * time.Millisecond) // a poll of what has no event, with a timeout
	}
}
