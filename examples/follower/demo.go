package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"example.com/litestream"
)

// runDemo kills a primary, lets its follower take over, and shows that the old
// primary cannot come back.
func runDemo(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "follower-demo-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	began := time.Now()
	d := &demo{ctx: ctx, out: out, dir: dir}
	defer func() { err = errors.Join(err, d.killAll()) }()
	if err := d.play(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	fmt.Fprintf(out, "done after %s\n", time.Since(began).Round(100*time.Millisecond))
	return nil
}

type demo struct {
	ctx       context.Context
	out       io.Writer
	dir       string
	processes []*process
}

func (d *demo) play() error {
	d.say("start a primary that writes 200 rows a second")
	primary, err := d.start("primary", "-primary", "-data", filepath.Join(d.dir, "a"))
	if err != nil {
		return err
	}
	n, url, err := primary.serves()
	if err != nil || n != 0 {
		return fmt.Errorf("the primary starts with %d rows: %w", n, err)
	}
	d.say("start a follower")
	follower, err := d.start("follower", "-upstream", url, "-data", filepath.Join(d.dir, "b"))
	if err != nil {
		return err
	}
	seen := 0
	for range 4 {
		if seen, err = follower.sees(seen + 1); err != nil {
			return err
		}
	}
	d.say("kill the primary, as a power loss would")
	if err := primary.kill(); err != nil {
		return err
	}
	d.say("promote the follower")
	if err := follower.tell("promote"); err != nil {
		return err
	}
	n, url, err = follower.serves()
	if err != nil || n < seen {
		return fmt.Errorf("the follower takes over with %d rows, after %d were seen: %w", n, seen, err)
	}
	d.say("start the old primary again, as if nothing had happened")
	old, err := d.start("old primary", "-primary", "-data", filepath.Join(d.dir, "a"))
	if err != nil {
		return err
	}
	line, err := old.until("another one took over")
	if err != nil || !strings.Contains(line, litestream.ErrReplicaMoved.Error()) {
		return fmt.Errorf("the old primary was not stopped: %w", err)
	}
	if err := old.wait(); err == nil {
		return errors.New("the old primary ended without an error")
	}
	d.say("it was refused; make it a follower, with a new file")
	rejoined, err := d.start("rejoined", "-upstream", url, "-data", filepath.Join(d.dir, "c"))
	if err != nil {
		return err
	}
	if _, err := rejoined.sees(n + 1); err != nil {
		return err
	}
	d.say("stop both in good order")
	for _, p := range []*process{rejoined, follower} {
		if err := p.stop(); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) say(what string) { fmt.Fprintln(d.out, "--", what) }

// process is this program in another role.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner // of stdout and stderr
	out   io.Writer
	ended bool
}

func (d *demo) start(name string, args ...string) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args = append(args, "-addr", "127.0.0.1:0", "-replica", filepath.Join(d.dir, "replica"))
	p := &process{name: name, out: d.out, cmd: exec.CommandContext(d.ctx, exe, args...)}
	p.cmd.Env = append(os.Environ(), roleEnv+"=1")
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = p.cmd.Stdout // one pipe
	p.lines = bufio.NewScanner(stdout)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	d.processes = append(d.processes, p)
	return p, nil
}

// roleEnv tells the processes of a demo, and the program's test, that this is
// one of them.
const roleEnv = "FOLLOWER_DEMO_ROLE"

// until prints what the process says up to a line that contains what, and
// returns that line.
func (p *process) until(what string) (string, error) {
	for p.lines.Scan() {
		line := p.lines.Text()
		fmt.Fprintf(p.out, "%12s | %s\n", p.name, line)
		if strings.Contains(line, what) {
			return line, nil
		}
	}
	return "", fmt.Errorf("the %s ended without saying %q: %w", p.name, what, errors.Join(p.lines.Err(), p.wait()))
}

// serves waits until the process is a primary.
func (p *process) serves() (rows int, url string, err error) {
	line, err := p.until("rows serves")
	if err == nil {
		_, err = fmt.Sscanf(line, "primary with %d rows serves %s", &rows, &url)
	}
	return rows, url, err
}

// sees waits until the follower sees at least n rows.
func (p *process) sees(n int) (rows int, err error) {
	for rows < n {
		line, err := p.until("follower sees")
		if err != nil {
			return 0, err
		}
		if _, err := fmt.Sscanf(line, "follower sees %d rows", &rows); err != nil {
			return 0, err
		}
	}
	return rows, nil
}

func (p *process) tell(line string) error {
	_, err := fmt.Fprintln(p.stdin, line)
	return err
}

// stop ends the process by the end of its stdin.
func (p *process) stop() error {
	if err := p.stdin.Close(); err != nil {
		return err
	}
	for p.lines.Scan() {
		fmt.Fprintf(p.out, "%12s | %s\n", p.name, p.lines.Text())
	}
	if err := p.wait(); err != nil {
		return fmt.Errorf("the %s: %w", p.name, err)
	}
	return nil
}

func (p *process) kill() error {
	if p.ended {
		return nil
	}
	err := p.cmd.Process.Kill()
	_ = p.wait() // "signal: killed"
	return err
}

func (p *process) wait() error {
	p.ended = true
	return p.cmd.Wait()
}

func (d *demo) killAll() (err error) {
	for _, p := range d.processes {
		err = errors.Join(err, p.kill())
	}
	return err
}
