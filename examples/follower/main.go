// Command follower shows a live copy of a database in a second process, and
// how that takes over when the first is gone. In two terminals:
//
//	go run ./examples/follower -primary
//	go run ./examples/follower
//
// The primary writes rows; the follower prints which it sees and how old they
// are. Type "promote" into the follower, after the primary has stopped, and it
// goes on writing where the primary stood. With -demo the program plays it all,
// as processes of its own, in a temporary directory.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"example.com/litestream"
)

// stopTimeout bounds the last sync of the replica.
const stopTimeout = 30 * time.Second

// name is what primary and follower call the database.
const name = "ticks"

type config struct {
	primary  bool
	addr     string // TCP address on which a primary serves its stream
	upstream string // URL of the stream that a follower follows
	data     string // directory of the database
	replica  string // directory to which a primary, or one promoted, streams
	token    string // that primary and follower share
	demo     bool
}

func main() {
	cfg, err := parseFlags(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil {
		os.Exit(2) // the flag package has said what is wrong
	}
	litestream.LogWriter = os.Stderr
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	switch {
	case cfg.demo:
		err = runDemo(ctx, os.Stdout)
	case cfg.primary:
		err = runPrimary(ctx, cfg, commands(os.Stdin), os.Stdout)
	default:
		err = runFollower(ctx, cfg, commands(os.Stdin), os.Stdout)
	}
	stop()
	if err != nil {
		log.SetFlags(0)
		log.Fatal("follower: ", err)
	}
}

func parseFlags(args []string, output io.Writer) (config, error) {
	var cfg config
	fs := flag.NewFlagSet("follower", flag.ContinueOnError)
	fs.SetOutput(output)
	fs.BoolVar(&cfg.primary, "primary", false, "write, and serve the stream; else follow it")
	fs.StringVar(&cfg.addr, "addr", "127.0.0.1:8081", "serve the stream on this TCP `address`")
	fs.StringVar(&cfg.upstream, "upstream", "http://127.0.0.1:8081/stream", "follow the stream at this `URL`")
	fs.StringVar(&cfg.data, "data", "", "keep the database in this `directory` (default follower-primary or follower-copy)")
	fs.StringVar(&cfg.replica, "replica", "follower-replica", "stream the database to this `directory` while it is written")
	fs.StringVar(&cfg.token, "token", "local", "the secret that primary and follower share")
	fs.BoolVar(&cfg.demo, "demo", false, "play everything, in a temporary directory, and exit")
	if err := fs.Parse(args); err != nil {
		return config{}, err
	}
	if fs.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q", fs.Arg(0))
		fmt.Fprintln(output, err)
		return config{}, err
	}
	if cfg.data == "" {
		cfg.data = "follower-copy"
		if cfg.primary {
			cfg.data = "follower-primary"
		}
	}
	return cfg, nil
}

// path returns the path of the database, whose directory it creates.
func (cfg config) path() (string, error) {
	return filepath.Join(cfg.data, "ticks.db"), os.MkdirAll(cfg.data, 0o700)
}

// commands returns the lines of r. The channel is closed at the end of r. The
// goroutine ends with r, which is with the process if that is stdin.
func commands(r io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}
