package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// runFollower follows the primary and prints what a reader sees, until ctx
// ends, or the commands. At the command "promote" it becomes the primary.
func runFollower(ctx context.Context, cfg config, commands <-chan string, out io.Writer) error {
	promoted, err := follow(ctx, cfg, commands, out)
	if err != nil || !promoted {
		return err
	}
	// The follower is closed; a DB without a StreamClient is a primary. It
	// begins a generation of its own on the replica.
	return runPrimary(ctx, cfg, commands, out)
}

func follow(ctx context.Context, cfg config, commands <-chan string, out io.Writer) (promoted bool, err error) {
	path, err := cfg.path()
	if err != nil {
		return false, err
	}
	client := streamhttp.NewClient(cfg.upstream, name)
	client.Authorize = streamhttp.BearerToken(cfg.token)
	db := litestream.NewDB(path)
	db.StreamClient = client
	if err := db.Open(); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	reader, err := openTicks(path, true)
	if err != nil {
		return false, err
	}
	defer reader.Close() // before db.Close

	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case command, ok := <-commands:
			if !ok || command == "promote" {
				return ok, nil
			}
			fmt.Fprintf(out, "unknown command %q\n", command)
		case <-ticker.C:
			if db.Pos().IsZero() {
				fmt.Fprintf(out, "nothing has arrived yet: %v\n", db.Stats().LastError)
				continue
			}
			n, at, err := lastTick(ctx, reader)
			if err != nil {
				return false, err
			}
			fmt.Fprintf(out, "follower sees %d rows, the last is %s old\n", n, time.Since(at).Round(time.Millisecond))
		}
	}
}
