package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/magikrun/magikpod/dbus/client"
	"github.com/magikrun/magikpod/internal/errkind"
	"github.com/magikrun/magikpod/internal/podapi"
)

func imageCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Manage images", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return Usagef("image what? (pull, load, save, list, tag, inspect, remove, prune)")
		},
	}
	cmd.AddCommand(imagePull(a), imageLoad(a), imageSave(a), imageList(a), imageTag(a), imageInspect(a), imageRemove(a), imagePrune(a))
	return cmd
}

func imagePull(a *app) *cobra.Command {
	var o podapi.PullOptions
	cmd := &cobra.Command{
		Use: "pull [--platform OS/ARCH] REFERENCE", Short: "Pull an image from a registry", Args: oneArg,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			o.Always = true
			job, err := c.PullImage(ctx, args[0], o)
			return a.job(ctx, c, job, err)
		}),
	}
	platformFlag(cmd, &o.Platform, "the host's")
	return cmd
}

// platformFlag is --platform.
func platformFlag(cmd *cobra.Command, platform *string, otherwise string) {
	cmd.Flags().StringVar(platform, "platform", "", "OS/ARCH[/VARIANT]: the part of a multi-platform image, such as wasip1/wasm; when not given "+otherwise)
}

func imageLoad(a *app) *cobra.Command {
	var o podapi.LoadOptions
	cmd := &cobra.Command{
		Use: "load [--tag REFERENCE] [--platform OS/ARCH] FILE|-", Short: "Load the images of an archive, or a WebAssembly module", Args: oneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			f := os.Stdin
			if args[0] != "-" {
				var err error
				if f, err = os.Open(args[0]); err != nil {
					return errkind.WithKind(FileKind(err), fmt.Errorf("cannot load the archive: %w", err))
				}
				defer func() { _ = f.Close() }()
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			refs, err := c.LoadImage(cmd.Context(), f, o)
			for _, ref := range refs {
				_ = a.printName(ref)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&o.Tag, "tag", "", "the image's name, instead of the one in the archive")
	platformFlag(cmd, &o.Platform, "the host's, and that of WebAssembly")
	return cmd
}

func imageSave(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "save [--file FILE] REFERENCE...", Short: "Write images as one archive to a file or to standard output", Args: someArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" && isTerminal(os.Stdout) {
				return Usagef("an archive is nothing for a terminal: use --file FILE, or redirect the output")
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if file == "" {
				return c.SaveImage(cmd.Context(), args, os.Stdout)
			}
			f, err := os.Create(file)
			if err != nil {
				return errkind.WithKind(FileKind(err), fmt.Errorf("cannot save the images: %w", err))
			}
			err = c.SaveImage(cmd.Context(), args, f)
			if closeErr := f.Close(); err == nil && closeErr != nil {
				err = errkind.Errorf(errkind.Internal, "cannot save the images: %w", closeErr)
			}
			if err != nil {
				_ = os.Remove(file) // half an archive is none
			}
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "the file to write")
	return cmd
}

func imageList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List images", Args: noArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			images, err := c.ListImages(ctx)
			if err != nil {
				return err
			}
			if a.output != "name" {
				for i := range images {
					images[i].Platform = platformOf(ctx, c, images[i].ID)
				}
			}
			if a.structured() {
				return a.printValue(images)
			}
			var rows [][]string
			for _, i := range images {
				refs := i.References
				if len(refs) == 0 {
					refs = []string{"<none>"}
				}
				for _, ref := range refs {
					if a.output == "name" {
						_ = a.printName(ref)
						continue
					}
					rows = append(rows, []string{ref, shortID(i.ID, a.output == "wide"), i.Platform, fmt.Sprintf("%.1f MB", float64(i.Size)/1e6), age(i.Created)})
				}
			}
			if a.output == "name" {
				return nil
			}
			return printTable(a.out, []string{"REFERENCE", "ID", "PLATFORM", "SIZE", "AGE"}, rows)
		}),
	}
}

// platformOf asks for what ListImages does not say; empty: an image does not say, or is gone by now.
func platformOf(ctx context.Context, c *client.Client, id string) string {
	var image podapi.ImageSummary
	if text, err := c.InspectImage(ctx, id); err == nil {
		_ = json.Unmarshal([]byte(text), &image) // what cannot be read says nothing
	}
	return image.Platform
}

func shortID(id string, whole bool) string {
	if whole || len(id) < 19 {
		return id
	}
	return id[7:19]
}

func imageTag(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "tag REFERENCE NEW", Short: "Give an image one more name", Args: usageArgs(cobra.ExactArgs(2)),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return c.TagImage(ctx, args[0], args[1])
		}),
	}
}

func imageInspect(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "inspect REFERENCE", Short: "Print what is known of an image", Args: oneArg,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			text, err := c.InspectImage(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printValue(json.RawMessage(text))
		}),
	}
}

func imageRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "remove REFERENCE...", Aliases: []string{"rm"}, Short: "Remove images", Args: someArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return a.each(args, func(ref string) error { return c.RemoveImage(ctx, ref, force) })
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if a stopped pod uses it")
	return cmd
}

func imagePrune(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "prune", Short: "Remove images that have no name and that no pod uses", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ids, err := c.PruneImages(cmd.Context())
			for _, id := range ids {
				_ = a.printName(id)
			}
			return err
		},
	}
}
